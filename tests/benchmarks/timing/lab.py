"""A small op with wrong providers: its rows are independent, they share the weight."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import torch

import tvkernels
from benchmarks.shapes import EPS, Call
from benchmarks.timing.__main__ import OPS, cases
from benchmarks.timing.bench import Bench, Case, Provider, Split
from benchmarks.timing.measure import Lab

SMALL = {case.name: case for op in OPS for case in cases(op, small=True)}
LARGE = {case.name: case for op in OPS for case in cases(op, small=False)}
right = tvkernels.rmsnorm_fn


def norm(backward: bool = False, **changed: object) -> Case:
    def prepare(ops: SimpleNamespace, tokens: int, dtype: torch.dtype) -> Call:
        x, z = torch.randn(2, 1, tokens, 2 * 48, dtype=dtype)[..., 48:].unbind()
        weight = torch.randn(48, dtype=dtype)
        by = (x.requires_grad_(), z.requires_grad_(), weight.requires_grad_())
        return Call(lambda: ops.rmsnorm_fn(x, weight, None, z, EPS, 24, False), by)

    bench = Bench("gated norm", prepare, small=128, split=Split(64, {"x": 1, "z": 1}, (1,)))
    forward, back = dataclasses.replace(bench, **changed).cases(small=True)
    return back if backward else forward


def rows_of(case: Case, lab: Lab | None = None, **others: object) -> dict[str, dict[str, Any]]:
    """The case's rows by provider; `others` are providers more, by name."""
    lab = lab or Lab(gpu=False)
    lab.providers += [Provider(name, lambda op, f=f: f) for name, f in others.items()]
    return {row["provider"]: row for row in lab.run(case)}
