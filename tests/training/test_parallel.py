"""Two processes give the weights of one, also if a rank has no vision, and after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.common import KINDS
from tests.training.run_divided import divided_run
from timeviper_fast.model.transv import TransV
from timeviper_fast.training.parallel import flatten_gates
from timeviper_fast.training.trainer import train

ROOT = Path(__file__).parents[2]


def launch(processes: int, output: Path, stop_at: int = 0) -> subprocess.CompletedProcess[str]:
    """Start a run on this number of processes."""
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={processes}",
            "-m", "tests.training.run_divided", str(output), str(stop_at),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "2-tuning" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights after a run of one process."""
    output = tmp_path_factory.mktemp("alone") / "run"
    train(divided_run(str(output)), KINDS)
    return weights(output)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.dtype == found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.slow
def test_two_processes_find_the_weights_of_one(alone, tmp_path):
    """Each pack is one sample: in most steps one process has vision and the other has none."""
    done = launch(2, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    close(weights(tmp_path / "run"), alone)


@pytest.mark.slow
def test_a_killed_run_is_continued_by_another_number_of_processes(alone, tmp_path):
    output = tmp_path / "run"
    assert launch(2, output, stop_at=3).returncode != 0
    assert [path.name for path in (output / "2-tuning").glob("step-*")] == ["step-00000002"]
    train(divided_run(str(output)), KINDS)
    close(weights(output), alone)


def test_a_flat_gate_computes_what_a_scalar_one_does():
    from tests.training.common import samples, tiny
    from timeviper_fast.training.packed import PackedModel

    losses = []
    for flat in (False, True):
        model = tiny()
        if flat:
            flatten_gates(model)
            assert [m.alpha.shape for m in model.backbone.transv if isinstance(m, TransV)] == [
                (1,),
                (1,),
            ]
        losses.append(PackedModel(model)(samples()).loss)
    assert torch.equal(*losses)


def test_packs_that_cannot_be_divided_are_refused():
    from timeviper_fast.training.parallel import World
    from timeviper_fast.training.stream import StepStream

    world = World(0, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match="packs_per_step must be a multiple of the 2 processes"):
        StepStream([], None, 3, world)
