"""Snapshots are atomic; the newest is found, old ones are removed, damage is an error."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.training.parallel import World
from timeviper_fast.training.snapshot import latest_snapshot, load_snapshot, save_snapshot

ALONE = World(0, 1, torch.device("cpu"))


def trained(steps, seed=0):
    torch.manual_seed(seed)
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(
        [{"params": [module.weight], "peak": 1}, {"params": [module.bias]}]
    )
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def test_everything_comes_back(tmp_path):
    module, optimizer = trained(3)
    save_snapshot(tmp_path, 3, module, optimizer, {"step": 3}, ALONE, keep=2)
    expected = torch.randn(5)
    other, its = trained(1, seed=9)
    state = load_snapshot(latest_snapshot(tmp_path), other, its, ALONE)
    assert state == {"step": 3}
    assert torch.equal(torch.randn(5), expected)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters()))
    for mine, loaded in zip(optimizer.state.values(), its.state.values()):
        assert all(torch.equal(value, loaded[name]) for name, value in mine.items())
    assert its.param_groups[0]["peak"] == 1


def test_the_newest_whole_one_counts_and_old_ones_go(tmp_path):
    module, optimizer = trained(1)
    for step in (2, 9, 10):
        save_snapshot(tmp_path, step, module, optimizer, {}, ALONE, keep=2)
    (tmp_path / ".step-00000011").mkdir()
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == ["step-00000009", "step-00000010"]
    assert latest_snapshot(tmp_path).name == "step-00000010"
    assert latest_snapshot(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["state.json", "__0_0.distcp", ".metadata"])
def test_a_damaged_one_is_told(tmp_path, name):
    module, optimizer = trained(1)
    path = save_snapshot(tmp_path, 1, module, optimizer, {}, ALONE, keep=1)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match="output must hold whole snapshots of this run"):
        load_snapshot(path, module, optimizer, ALONE)


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_ends_a_save_is_raised_as_it_is(tmp_path, monkeypatch, cause):
    module, optimizer = trained(1)

    def fail(*_given, **_more):
        raise cause

    monkeypatch.setattr("torch.distributed.checkpoint.FileSystemWriter.write_data", fail)
    with pytest.raises(type(cause)):
        save_snapshot(tmp_path, 1, module, optimizer, {}, ALONE, keep=1)
    assert latest_snapshot(tmp_path) is None
