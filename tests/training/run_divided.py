"""A process of a divided run, started by torchrun: `python -m tests.training.run_divided OUTPUT
STOP_AT`. The process is killed after step STOP_AT of the last phase; 0 does not kill it."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace

from tests.training.common import CONFIG, KINDS, run_of
from timeviper_fast import presets
from timeviper_fast.training.trainer import train


def divided_run(output: str):
    """The sharded run of the tests: float64, with packs with and without vision."""
    source = {"name": "pictures", "kind": "pictures", "texts": True}
    run = run_of(output, dtype="float64", save_dtype="float64", save_every=2, source=[source])
    return replace(
        run, phases=tuple(replace(p, packs_per_step=2, tokens_per_pack=1) for p in run.phases)
    )


if __name__ == "__main__":
    output, stop_at = sys.argv[1], int(sys.argv[2])
    presets.PRESETS["tiny-for-tests"] = CONFIG

    def progress(at) -> None:
        if stop_at and (at.phase, at.step) == ("tuning", stop_at):
            os.kill(os.getpid(), signal.SIGKILL)

    train(divided_run(output), KINDS, progress=progress)
