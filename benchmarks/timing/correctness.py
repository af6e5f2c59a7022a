"""Whether a provider computes what the op's contract says, at the very shape that is timed.

The exact values are the reference's in float64. A long case does not fit in float64 as a whole: it
is cut into independent parts (`Split`), and some of them, spread evenly with the first and the
last, are compared; the last alone where the reference is slow. The provider itself runs on the
whole, and all of its result must be finite. For a backward pass the cotangents are 0 outside those
parts, so that gradients that sum over parts are compared too.

The rule is that of tests/contract.py: per tensor, relative L2 and the largest error over the
largest value are no worse than twice what the reference loses at the call's own dtype, plus 1e-3
(16 bit) or 1e-6. A float32 result of 16-bit arguments counts here as rounded to their dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.timing.bench import Case, Recorded, Split
from tests.contract import FLOORS

# float64 bytes of arguments and results that may be held, and parts that are compared, at most
HELD_BYTES = 2e9
MOST_PARTS = 16

Run = Callable[..., Any]


class Loss(NamedTuple):
    """(relative L2, largest error over largest value) of one tensor."""

    l2: float
    peak: float


class Outcome(NamedTuple):
    """One call: its results (with the tensors that it wrote in place), cotangents and gradients."""

    results: list[Tensor | None]
    cotangents: list[Tensor | None]
    gradients: dict[str, Tensor]


class Exact:
    """The float64 values of a case on the parts that are compared, and what plain PyTorch loses.

    Args:
        case, recorded: the case and its call.
        reference: the op's reference.
        dtype: the dtype of the call.
    """

    def __init__(self, case: Case, recorded: Recorded, reference: Run, dtype: torch.dtype) -> None:
        self.case, self.recorded, self.reference, self.dtype = case, recorded, reference, dtype
        self.split = case.bench.split or Split(1, {}, ())
        self.parts = self.split.parts or _first_size(self.split, recorded.arguments)
        self.chosen = _spread(self.parts, self._parts_that_fit())
        self.pieces = [self._piece(i, recorded.arguments) for i in self.chosen]
        self.outcomes = [self._run(reference, _cast(p, torch.float64)) for p in self.pieces]
        self.gradients = self._gathered(self.outcomes)
        self.bounds = self._bounds(dtype)

    @property
    def checked(self) -> str:
        return "whole" if self.parts == 1 else f"{len(self.chosen)} of {self.parts} parts"

    def compare(self, run: Run, arguments: Mapping[str, Any]) -> tuple[str, float]:
        """Where `run(**arguments)` is worst, in words, and its error there over what it may be.

        `arguments` have the values of the case's call, strides aside. Above 1 is a breach; a
        breach that is no matter of rounding is infinite.
        """
        results, _, gradients = self._run(run, arguments, whole=True)
        if len(results) != len(self.outcomes[0].results):
            expected = len(self.outcomes[0].results)
            return f"it gives {len(results)} results, not {expected}", math.inf
        judge = self.case.bench.judge
        if judge is not None and not self.case.backward:
            wrong = judge(arguments, [x for x in results if x is not None])
            if wrong:
                return wrong, math.inf
        infinite = [str(n) for n, x in enumerate(results) if not _finite(x)]
        infinite += [f"d{name}" for name, x in gradients.items() if not _finite(x)]
        if infinite:
            return f"not finite: {', '.join(infinite)}", math.inf
        cut = self.split.arguments
        dims = [*self.split.results, *(cut.get(n, 0) for n in self.case.bench.changes)]
        got = [results]
        if self.parts > 1:
            got = [[self._cut(x, d, i) for x, d in zip(results, dims)] for i in self.chosen]
        pieces = {
            name: [self._cut(x, cut[name], i) for i in self.chosen] if name in cut else [x]
            for name, x in gradients.items()
        }
        return self._verdict(got, pieces, self.bounds)

    def compare_in(self, run: Run, dtype: torch.dtype) -> tuple[str, float]:
        """As `compare`, on the parts alone and with every argument in `dtype`."""
        outcomes = [self._run(run, _cast(p, dtype), i) for i, p in enumerate(self.pieces)]
        got = [outcome.results for outcome in outcomes]
        return self._verdict(got, self._gathered(outcomes), self._bounds(dtype))

    def _verdict(
        self,
        got: Sequence[Sequence[Tensor | None]],
        gradients: Mapping[str, list[Tensor]],
        bounds: Mapping[str, Loss],
    ) -> tuple[str, float]:
        worst, fault = 0.0, ""
        for name, ours, exact in self._pairs(got, gradients):
            if not ours[0].is_floating_point():
                if self.case.bench.judge is None and not all(map(torch.equal, ours, exact)):
                    return f"{name}: integers differ from the exact ones", math.inf
                continue
            for kind, have, bound in zip(("L2", "largest"), _loss(ours, exact), bounds[name]):
                over = have / bound if math.isfinite(have) else math.inf
                if over > worst:
                    worst, fault = over, f"{name}: {kind} error {have:.2g}, may be {bound:.2g}"
        return fault, worst

    def _pairs(
        self, got: Sequence[Sequence[Tensor | None]], gradients: Mapping[str, list[Tensor]]
    ) -> list[tuple[str, list[Tensor], list[Tensor]]]:
        """(name, its pieces, the exact ones) of each tensor that both have."""
        if self.case.backward:
            return [(f"d{n}", gradients[n], self.gradients[n]) for n in gradients]
        both = zip(zip(*got), zip(*(outcome.results for outcome in self.outcomes)))
        return [
            (f"result {n}", list(ours), list(exact))
            for n, (ours, exact) in enumerate(both)
            if all(x is not None for x in ours)
        ]

    def _bounds(self, dtype: torch.dtype) -> dict[str, Loss]:
        """Twice what the reference loses at `dtype`, plus the floor."""
        same = dtype == self.dtype
        outcomes = [
            self._run(self.reference, p if same else _cast(p, dtype), i)
            for i, p in enumerate(self.pieces)
        ]
        pairs = self._pairs([outcome.results for outcome in outcomes], self._gathered(outcomes))
        return {
            name: Loss(*(2 * x + FLOORS[dtype] for x in _loss([x.to(dtype) for x in plain], exact)))
            for name, plain, exact in pairs
            if plain[0].is_floating_point()
        }

    def _run(
        self, run: Run, arguments: Mapping[str, Any], piece: int | None = None, whole: bool = False
    ) -> Outcome:
        """One call: of everything, of a piece with its cotangents, or of one that makes them."""
        if not self.case.backward:
            fresh = {n: arguments[n].detach().clone() for n in self.case.bench.changes}
            with torch.no_grad():
                results = tensors_of(run(**{**arguments, **fresh}))
            return Outcome([*results, *fresh.values()], [], {})
        leaves, results = differentiable(run, arguments, self.recorded.by)
        if whole:
            cotangents = [self._spread_cotangent(x, n) for n, x in enumerate(results)]
        elif piece is None:
            # rounded, so that every dtype is given the same numbers
            cotangents = [
                torch.randn_like(x, dtype=self.dtype).to(x.dtype) if _has_grad(x) else None
                for x in results
            ]
        else:
            cotangents = [
                None if c is None or x is None else c.to(x.dtype)
                for c, x in zip(self.outcomes[piece].cotangents, results)
            ]
        pairs = [(x, c) for x, c in zip(results, cotangents) if c is not None and _has_grad(x)]
        outputs, weights = zip(*pairs)
        gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
        detached = [x if x is None else x.detach() for x in results]
        return Outcome(detached, cotangents, dict(zip(leaves, gradients)))

    def _spread_cotangent(self, result: Tensor | None, n: int) -> Tensor | None:
        """Over a whole result: the pieces' cotangents in their places, 0 elsewhere."""
        given = [outcome.cotangents[n] for outcome in self.outcomes]
        if result is None or given[0] is None:
            return None
        out = torch.zeros_like(result)
        for i, cotangent in zip(self.chosen, given):
            part = out if self.parts == 1 else self._cut(out, self.split.results[n], i)
            part.copy_(cotangent)
        return out

    def _gathered(self, outcomes: Sequence[Outcome]) -> dict[str, list[Tensor]]:
        """Gradients of split arguments piece by piece, of shared ones the sum over pieces."""
        gathered = {}
        for name in outcomes[0].gradients:
            each = [outcome.gradients[name] for outcome in outcomes]
            shared = name not in self.split.arguments
            gathered[name] = [torch.stack([x.double() for x in each]).sum(0)] if shared else each
        return gathered

    def _piece(self, i: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
        cut = {n: self._cut(arguments[n], d, i) for n, d in self.split.arguments.items()}
        return {**arguments, **cut}

    def _cut(self, x: Tensor | None, dim: int, i: int) -> Any:
        if x is None:
            return None
        size = x.shape[dim] // self.parts
        return x.detach().narrow(dim, i * size, size)

    def _parts_that_fit(self) -> int:
        """Arguments and results of a part are about twice the arguments, in float64."""
        if self.case.beyond_plain:
            return 1
        names = self.split.arguments or self.recorded.arguments
        tensors = tensors_of([self.recorded.arguments[n] for n in names])
        each = 16 * sum(x.numel() for x in tensors if x is not None) / self.parts
        return max(2, min(MOST_PARTS, int(HELD_BYTES // max(each, 1))))


def tensors_of(results: Any) -> list[Tensor | None]:
    """A function's results as a list; a result that is no tensor is None."""
    several = results if isinstance(results, (tuple, list)) else (results,)
    return [x if isinstance(x, Tensor) else None for x in several]


def differentiable(
    run: Run, arguments: Mapping[str, Any], by: Sequence[str]
) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """Fresh leaves for `by`, and the results that depend on them."""
    leaves = {name: arguments[name].detach().requires_grad_() for name in by}
    with torch.enable_grad():
        return leaves, tensors_of(run(**{**arguments, **leaves}))


def _has_grad(x: Tensor | None) -> bool:
    return x is not None and x.requires_grad


def _first_size(split: Split, arguments: Mapping[str, Any]) -> int:
    name, dim = next(iter(split.arguments.items()))
    return int(arguments[name].shape[dim])


def _spread(parts: int, most: int) -> list[int]:
    """At most `most` part numbers, evenly spread: the first and the last, of one the last."""
    if parts <= most:
        return list(range(parts))
    if most == 1:
        return [parts - 1]
    return [i * (parts - 1) // (most - 1) for i in range(most)]


def _cast(arguments: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        n: x.detach().to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for n, x in arguments.items()
    }


def _finite(x: Tensor | None) -> bool:
    """Block by block: a mask of the whole would be half as large as a long result."""
    if x is None or not x.is_floating_point():
        return True
    blocks = x.detach().split(max(1, x.shape[0] // 16)) if x.ndim else [x]
    return all(bool(torch.isfinite(block).all()) for block in blocks)


def _loss(got: Sequence[Tensor], exact: Sequence[Tensor]) -> Loss:
    square = total = worst = peak = 0.0
    for g, e in zip(got, exact):
        difference, e = g.detach().double() - e.double(), e.detach().double()
        square += float(difference.square().sum())
        total += float(e.square().sum())
        worst = max(worst, float(difference.abs().max()) if e.numel() else 0.0)
        peak = max(peak, float(e.abs().max()) if e.numel() else 1.0)
    return Loss((square / max(total, 1e-60)) ** 0.5, worst / max(peak, 1e-30))
