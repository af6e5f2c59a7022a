"""Whether a provider computes what the op's contract says, at the very shape that is timed.

Truth is the reference in float64. A long case is not held whole in float64: it is cut into
independent parts (`Split`), and some of them, spread evenly with the first and the last, are
compared; the last alone where the reference is slow. The provider itself runs on the whole, and all
of its result must be finite. Backward, the cotangents are 0 outside those parts, so that gradients
that sum over parts are compared too.

The rule is that of tests/contract.py: per tensor, relative L2 and the largest error over the
largest value are no worse than twice what the reference loses at the call's own dtype, plus 1e-3
(16 bit) or 1e-6. Here a float32 result of 16-bit arguments counts as rounded to their dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.timing.bench import Case, Recorded, Split

__all__ = ["Truth", "differentiable", "tensors_of"]

# float64 bytes of arguments and results that may be held, and parts that are compared, at most
HELD_BYTES = 2e9
MOST_PARTS = 16
FLOORS = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3}


class Loss(NamedTuple):
    """(relative L2, largest error over largest value) of one tensor."""

    l2: float
    peak: float


class Truth:
    """What a case gives in float64 on the parts that are compared, and what plain PyTorch loses.

    Args:
        case, recorded: the case and its call.
        reference: the op's reference.
        dtype: the dtype of the call.
    """

    def __init__(
        self, case: Case, recorded: Recorded, reference: Callable[..., Any], dtype: torch.dtype
    ) -> None:
        self.case, self.recorded, self.reference, self.dtype = case, recorded, reference, dtype
        self.split = case.bench.split or Split(1, {}, ())
        self.parts = self.split.parts or _first(self.split, recorded.arguments)
        self.chosen = _spread(self.parts, self._parts_that_fit())
        self.pieces = [self._piece(i, recorded.arguments) for i in self.chosen]
        self.exact: list[list[Tensor | None]] = []
        self.cotangents: list[list[Tensor | None]] = []
        exact_gradients: list[dict[str, Tensor]] = []
        for piece in self.pieces:
            results, cotangents, gradients = self._run(reference, _cast(piece, torch.float64))
            self.exact.append(results)
            self.cotangents.append(cotangents)
            exact_gradients.append(gradients)
        self.exact_gradients = self._gathered(exact_gradients)
        self.bounds = self._bounds(dtype)

    @property
    def checked(self) -> str:
        return "whole" if self.parts == 1 else f"{len(self.chosen)} of {self.parts} parts"

    def compare(self, run: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[str, float]:
        """Where `run(**arguments)` is worst, in words, and its error there over what it may be.

        `arguments` have the values of the case's call, strides aside. Above 1 is a breach; a
        breach that is no matter of rounding is infinite.
        """
        names = self.case.bench.changes
        results, _, gradients = self._run(run, arguments, whole=True)
        if len(results) != len(self.exact[0]):
            return f"it gives {len(results)} results, not {len(self.exact[0])}", math.inf
        judge = self.case.bench.judge
        if judge is not None and not self.case.backward:
            wrong = judge(arguments, [x for x in results if x is not None])
            if wrong:
                return wrong, math.inf
        dims = [*self.split.results, *(self.split.arguments.get(n, 0) for n in names)]
        got = [results]
        if self.parts > 1:
            got = [
                [x if x is None else self._cut(x, d, i) for x, d in zip(results, dims)]
                for i in self.chosen
            ]
        infinite = [str(n) for n, x in enumerate(results) if not _finite(x)]
        infinite += [f"d{name}" for name, x in gradients.items() if not _finite(x)]
        if infinite:
            return f"not finite: {', '.join(infinite)}", math.inf
        return self._verdict(got, self._gradient_pieces(gradients), self.bounds)

    def compare_in(self, run: Callable[..., Any], dtype: torch.dtype) -> tuple[str, float]:
        """As `compare`, on the parts alone and with every argument in `dtype`."""
        runs = [self._run(run, _cast(p, dtype), i) for i, p in enumerate(self.pieces)]
        bounds = self._bounds(dtype)
        gradients = self._gathered([gradients for _, _, gradients in runs])
        return self._verdict([results for results, _, _ in runs], gradients, bounds)

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
                    return f"{name}: integers differ from the truth's", math.inf
                continue
            loss = _loss(ours, exact)
            for kind, have, bound in zip(("L2", "largest"), loss, bounds[name]):
                over = have / bound if math.isfinite(have) else math.inf
                if over > worst:
                    worst = over
                    fault = f"{name}: {kind} error {have:.2g}, may be {bound:.2g}"
        return fault, worst

    def _pairs(
        self, got: Sequence[Sequence[Tensor | None]], gradients: Mapping[str, list[Tensor]]
    ) -> list[tuple[str, list[Tensor], list[Tensor]]]:
        """(name, its pieces, the truth's) of each tensor that both have."""
        if self.case.backward:
            return [(f"d{n}", gradients[n], self.exact_gradients[n]) for n in gradients]
        pairs = []
        for n, (ours, exact) in enumerate(zip(zip(*got), zip(*self.exact))):
            if all(x is not None for x in ours):
                pairs.append((f"result {n}", list(ours), list(exact)))
        return pairs

    def _bounds(self, dtype: torch.dtype) -> dict[str, Loss]:
        """Twice what the reference loses at `dtype`, plus the floor."""
        same = dtype == self.dtype
        runs = [
            self._run(self.reference, p if same else _cast(p, dtype), i)
            for i, p in enumerate(self.pieces)
        ]
        gradients = self._gathered([gradients for _, _, gradients in runs])
        bounds = {}
        for name, plain, exact in self._pairs([r for r, _, _ in runs], gradients):
            if plain[0].is_floating_point():
                loss = _loss([x.to(dtype) for x in plain], exact)
                bounds[name] = Loss(*(2 * have + FLOORS[dtype] for have in loss))
        return bounds

    def _run(
        self,
        run: Callable[..., Any],
        arguments: Mapping[str, Any],
        piece: int | None = None,
        whole: bool = False,
    ) -> tuple[list[Tensor | None], list[Tensor | None], dict[str, Tensor]]:
        """Results (what is written in place last), cotangents and gradients of one call."""
        if not self.case.backward:
            fresh = {n: arguments[n].detach().clone() for n in self.case.bench.changes}
            with torch.no_grad():
                results = tensors_of(run(**{**arguments, **fresh}))
            return [*results, *fresh.values()], [], {}
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
                for c, x in zip(self.cotangents[piece], results)
            ]
        pairs = [(x, c) for x, c in zip(results, cotangents) if c is not None and _has_grad(x)]
        outputs, weights = zip(*pairs)
        gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
        return (
            [x if x is None else x.detach() for x in results],
            cotangents,
            dict(zip(leaves, gradients)),
        )

    def _spread_cotangent(self, result: Tensor | None, n: int) -> Tensor | None:
        """Over a whole result: the pieces' cotangents in their places, 0 elsewhere."""
        given = [piece[n] for piece in self.cotangents]
        if result is None or given[0] is None:
            return None
        out = torch.zeros_like(result)
        for i, cotangent in zip(self.chosen, given):
            part = out if self.parts == 1 else self._cut(out, self.split.results[n], i)
            part.copy_(cotangent)
        return out

    def _gathered(self, pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, list[Tensor]]:
        """Gradients of split arguments piece by piece, of shared ones the sum over pieces."""
        gathered = {}
        for name in pieces[0]:
            each = [piece[name] for piece in pieces]
            if name not in self.split.arguments:
                each = [torch.stack([x.double() for x in each]).sum(0)]
            gathered[name] = each
        return gathered

    def _gradient_pieces(self, gradients: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        dims = self.split.arguments
        return {
            name: [self._cut(x, dims[name], i) for i in self.chosen] if name in dims else [x]
            for name, x in gradients.items()
        }

    def _piece(self, i: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
        cut = {n: self._cut(arguments[n], d, i) for n, d in self.split.arguments.items()}
        return {**arguments, **cut}

    def _cut(self, x: Tensor, dim: int, i: int) -> Tensor:
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
    """A function's results as a list; what is no tensor is None."""
    several = results if isinstance(results, (tuple, list)) else (results,)
    return [x if isinstance(x, Tensor) else None for x in several]


def differentiable(
    run: Callable[..., Any], arguments: Mapping[str, Any], by: Sequence[str]
) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """Fresh leaves for `by`, and the results that depend on them."""
    leaves = {name: arguments[name].detach().requires_grad_() for name in by}
    with torch.enable_grad():
        return leaves, tensors_of(run(**{**arguments, **leaves}))


def _has_grad(x: Tensor | None) -> bool:
    return x is not None and x.requires_grad


def _first(split: Split, arguments: Mapping[str, Any]) -> int:
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
    """Block by block: the mask of all of a long result would be half as large as itself."""
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
