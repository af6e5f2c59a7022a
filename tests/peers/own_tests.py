"""mamba-ssm's and causal-conv1d's own test files on our stand-ins, with the packages' own references.

    python -m tests.peers.own_tests CHECKOUT ... [--seed 1] [--seconds 900] [-k EXPRESSION]
    TRITON_INTERPRET=1 python -m tests.peers.own_tests CHECKOUT ... --backend triton --seed 1

A CHECKOUT is a source tree of either package. Its test files are copied to a temporary folder with
the device renamed to "cpu" and, for the interpreter, smaller sizes. The functions that they test are
ours; the references that they compare with are cut out of the package's sources. With --seed the
tests run in a random order, so that those that fit into --seconds are a sample of all. Nothing of
theirs is kept.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from tests import interpreter
from tvkernels import provide, use_backend

FILES = {
    "causal_conv1d": ["tests/test_causal_conv1d.py"],
    "mamba_ssm": [
        "tests/ops/triton/test_selective_state_update.py",
        "tests/ops/triton/test_layernorm_gated.py",
    ],
}
REFERENCES = {
    "causal_conv1d.causal_conv1d_interface": ["causal_conv1d_ref", "causal_conv1d_update_ref"],
    "causal_conv1d.causal_conv1d_varlen": ["causal_conv1d_varlen_states_ref"],
    "mamba_ssm.ops.triton.selective_state_update": ["selective_state_update_ref"],
    "mamba_ssm.ops.triton.layernorm_gated": ["rms_norm_ref"],
}
ON_A_CPU = {
    r"""(["'])cuda\1""": '"cpu"',
    r"torch\.cuda\.synchronize\(\)": "None",
    r"not torch\.cuda\.is_available\(\)": "False",
    # the race condition is looked for in 10,000 runs
    r"range\(10000\)": "range(20)",
}
# in their sizes a test takes the interpreter a minute
INTERPRETED = {
    r"\[2048, 2048 \+ 16, 4096\]": "[128, 144, 256]",
    r"\[2048, 4096\]": "[256, 512]",
    r"\[64, 4096 \+ 32\]": "[64, 96]",
    r"\bseqlen = 1024\b": "seqlen = 24",
    r"\bbatch = (64|16)\b": "batch = 3",
}


class Sample:
    """Runs the tests on one backend, in a random order, until the time is over."""

    def __init__(self, backend: str, seed: int | None, seconds: float) -> None:
        self.backend, self.seed, self.end = backend, seed, time.monotonic() + seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.seed is not None:
            random.Random(self.seed).shuffle(items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with use_backend(self.backend):
            yield
        if time.monotonic() > self.end:
            item.session.shouldstop = "the time is over"


def use_references(checkout: Path) -> None:
    """Put the package's own references into the stand-ins' modules."""
    names = {"torch": torch, "F": F, "rearrange": rearrange, "repeat": repeat, "Tensor": Tensor}
    for module, functions in REFERENCES.items():
        source = checkout / f"{module.replace('.', '/')}.py"
        if source.exists():
            tree = ast.parse(source.read_text(encoding="utf-8"))
            tree.body = [n for n in tree.body if getattr(n, "name", None) in functions]
            found: dict[str, Any] = {}
            exec(compile(tree, source, "exec"), names, found)
            assert [*found] == functions, f"{source} has {[*found]}"
            vars(importlib.import_module(module)).update(found)


def copied(checkout: Path, folder: Path, changes: dict[str, str]) -> None:
    """The package's test files, changed, in `folder`."""
    files = [checkout / file for of in FILES.values() for file in of if (checkout / file).exists()]
    assert files, f"{checkout} is no source tree of mamba-ssm or causal-conv1d"
    for file in files:
        text = file.read_text(encoding="utf-8")
        for old, new in changes.items():
            text = re.sub(old, new, text)
        (folder / file.name).write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    parser.add_argument("--backend", choices=("reference", "triton"), default="reference")
    parser.add_argument("--seed", type=int, help="run in a random order")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("-k", default="", help="as pytest's")
    args = parser.parse_args()
    if interpreter.INTERPRETED:
        interpreter.install()
    changes = ON_A_CPU | (INTERPRETED if args.backend == "triton" else {})
    with tempfile.TemporaryDirectory() as folder, provide(*FILES):
        for checkout in args.checkouts:
            use_references(checkout)
            copied(checkout, Path(folder), changes)
        options = ["-q", "-rf", "--tb=line", "-p", "no:cacheprovider", "--rootdir", folder]
        sample = Sample(args.backend, args.seed, args.seconds)
        return pytest.main([*options, "-k", args.k, folder], [sample])


if __name__ == "__main__":
    sys.exit(main())
