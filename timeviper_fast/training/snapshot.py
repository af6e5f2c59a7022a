"""A run's state on disk, from which it continues as if nothing had happened.

A snapshot is a folder `step-N` with the files of torch.distributed.checkpoint (weights and
optimizer, readable by any number of processes) and `state.json` (position in the data). It is
written under a temporary name and renamed when complete.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from timeviper_fast.errors import ArgumentError
from timeviper_fast.training.parallel import World

__all__ = ["latest_snapshot", "load_snapshot", "save_snapshot"]

_NAME = re.compile(r"step-(\d+)")


def latest_snapshot(folder: Path) -> Path | None:
    """The newest complete snapshot in a phase's folder, or None."""
    found = {int(m[1]): path for path in folder.glob("step-*") if (m := _NAME.fullmatch(path.name))}
    return found[max(found)] if found else None


def save_snapshot(
    folder: Path,
    step: int,
    wrapper: nn.Module,
    optimizer: Optimizer,
    state: dict[str, Any],
    world: World,
    keep: int,
) -> Path:
    """Write a snapshot after `step` steps, then remove all but the last `keep`.

    Args:
        state: JSON values, such as the position in the data.

    Returns:
        The snapshot's folder.
    """
    target, work = folder / f"step-{step:08d}", folder / f".step-{step:08d}"
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover)
    world.wait()
    weights, moments = get_state_dict(wrapper, optimizer)
    with _one_cause(world):
        dcp.save(
            {"weights": weights, "optimizer": moments, **_random_state(world)}, checkpoint_id=work
        )
    if world.first:
        (work / "state.json").write_text(json.dumps(state), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
        whole = sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))
        for old in whole[:-keep]:
            shutil.rmtree(old)
    world.wait()
    return target


def load_snapshot(
    path: Path, wrapper: nn.Module, optimizer: Optimizer, world: World
) -> dict[str, Any]:
    """Restore weights, optimizer and random state in place; return the JSON state.

    Raises:
        ValueError: the snapshot belongs to another model or optimizer, or is damaged.
    """
    weights, moments = get_state_dict(wrapper, optimizer)
    random = _random_state(world)
    try:
        known = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        # A snapshot of fewer processes has no random state for the new ranks: they keep their own.
        random = {name: value for name, value in random.items() if name in known}
        with _one_cause(world):
            dcp.load({"weights": weights, "optimizer": moments, **random}, checkpoint_id=path)
        set_state_dict(
            wrapper,
            optimizer,
            model_state_dict=weights,
            optim_state_dict=moments,
        )
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    # damaged pickles can raise anything; each means that the snapshot cannot be read
    except Exception as error:
        rule = "hold whole snapshots of this run (remove a damaged one)"
        raise ArgumentError("train", "output", rule, f"{path} ({error})") from error
    for name, value in random.items():
        if "cuda" in name:
            torch.cuda.set_rng_state(value)
        else:
            torch.set_rng_state(value)
    return state


def _random_state(world: World) -> dict[str, torch.Tensor]:
    """This process's random states, under names that contain its rank."""
    state = {f"random.{world.rank}": torch.get_rng_state()}
    if world.device.type == "cuda":
        state[f"random.{world.rank}.cuda"] = torch.cuda.get_rng_state()
    return state


@contextmanager
def _one_cause(world: World) -> Iterator[None]:
    """Raise what a process raised, instead of torch's CheckpointException, which is no Exception
    and holds Ctrl-C and a full disk alike. One process that saves alone is no reason to warn."""
    with warnings.catch_warnings():
        if world.size == 1:
            warnings.filterwarnings("ignore", message=".*torch.distributed.*single process.*")
        try:
            yield
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise cause from error
