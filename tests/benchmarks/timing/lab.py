"""A small op to be wrong about: rows are independent, the weight is shared."""

from __future__ import annotations

import dataclasses
import importlib
from types import SimpleNamespace
from typing import Any

import torch

import tvkernels
from benchmarks.shapes.calls import EPS, Call
from benchmarks.shapes.floors import Floor
from benchmarks.timing.__main__ import parts
from benchmarks.timing.bench import Bench, Case, Split
from benchmarks.timing.measure import Lab
from benchmarks.timing.peers import Provider

PARTS = [part for part in parts() if part != "contracts"]
FLOORS = {"norm": lambda n: Floor(n * 48 * 6), "norm, backward": lambda n: Floor(n * 48 * 10)}


def benches(part: str) -> tuple[Bench, ...]:
    return importlib.import_module(f"benchmarks.ops.bench_{part}").BENCHES


def small(backward: bool = False, **changed: object) -> Case:
    def prepare(ops: SimpleNamespace, tokens: int, dtype: torch.dtype) -> Call:
        x, z = torch.randn(2, 1, tokens, 2 * 48, dtype=dtype)[..., 48:].unbind()
        weight = torch.randn(48, dtype=dtype)
        by = (x.requires_grad_(), z.requires_grad_(), weight.requires_grad_())
        return Call(lambda: ops.rmsnorm_fn(x, weight, None, z, EPS, 24, False), by)

    bench = Bench("norm", prepare, small=128, split=Split(64, {"x": 1, "z": 1}, (1,)))
    bench = dataclasses.replace(bench, floors=FLOORS, **changed)
    return next(case for case in bench.cases(small=True) if case.backward == backward)


def lab_with(**others: object) -> Lab:
    lab = Lab(gpu=False)
    lab.providers += [Provider(name, lambda op, f=f: f) for name, f in others.items()]
    return lab


def rows_of(lab: Lab, case: Case) -> dict[str, dict[str, Any]]:
    return {row["provider"]: row for row in lab.run(case)}


def right(*args: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
    return tvkernels.rmsnorm_fn(*args, **options)
