"""Whether a provider computes what the op's contract says, at the very shape that is timed.

The expected values are the reference's in float64. A long call does not fit in memory in float64,
so a sample is compared: some of its independent parts (`Split`), spread evenly with the first and
the last, or the last alone where plain PyTorch is slow. The reference runs once, on these parts
joined. The provider runs on the whole call, and all of its results must be finite. For a backward
pass the cotangents are 0 outside the sample, so gradients that sum over all parts are compared too.

The rule is that of tests/contract.py: for each tensor, the relative L2 error and the largest error
over the largest value are at most twice what the reference loses at the call's own dtype, plus 1e-3
(16 bit) or 1e-6. A float32 result of 16-bit arguments counts as rounded to their dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing.bench import Case, Recorded, Split
from tests.contract import FLOORS, as_tuple, cast, errors

# the most that a sample may hold: bytes of arguments and results in float64, and parts
HELD_BYTES = 2e9
MOST_PARTS = 16

Run = Callable[..., Any]
Arguments = Mapping[str, Any]
# by name: what a call returns, writes in place, or gives as gradients
Outcome = Mapping[str, Tensor | None]
# by name, the largest L2 error and the largest error of an element that are allowed
Bounds = Mapping[str, tuple[float, ...]]


class Sample:
    """Some independent parts of a call. Tensors of all parts are cut by their names.

    Results are named "result 0", ...; an argument, as it is or written in place, has its own name;
    the gradient of x is dx.
    """

    def __init__(self, case: Case, arguments: Arguments) -> None:
        split = case.bench.split or Split(1, {}, ())
        self.dims = {f"result {n}": dim for n, dim in enumerate(split.results)}
        self.dims |= split.arguments | {f"d{n}": dim for n, dim in split.arguments.items()}
        sizes = [arguments[n].shape[dim] for n, dim in split.arguments.items()]
        self.parts = split.parts or sizes[0]
        if any(size % self.parts for size in sizes):
            raise ValueError(f"{case.name} does not fall into {self.parts} equal parts: {sizes}")
        names = split.arguments or arguments
        elements = sum(x.numel() for x in _tensors([arguments[n] for n in names]))
        # arguments and results are about twice the arguments
        each = 16 * elements / self.parts
        fitting = max(2, min(MOST_PARTS, int(HELD_BYTES // max(each, 1))))
        self.chosen = spread(self.parts, 1 if case.beyond_plain else fitting)

    def __str__(self) -> str:
        return "whole" if self.parts == 1 else f"{len(self.chosen)} of {self.parts} parts"

    def cut(self, name: str, x: Any) -> Any:
        """The sample's parts of a tensor, joined; what the parts share, as it is."""
        dim = self.dims.get(name)
        if dim is None or not isinstance(x, Tensor):
            return x
        size = x.shape[dim] // self.parts
        return torch.cat([x.detach().narrow(dim, i * size, size) for i in self.chosen], dim)

    def put(self, name: str, parts: Tensor, like: Tensor) -> Tensor:
        """The sample's parts at their places in a tensor like `like` that is 0 elsewhere."""
        dim = self.dims.get(name)
        if dim is None:
            return parts.to(like.dtype)
        whole = torch.zeros_like(like)
        for i, part in zip(self.chosen, parts.chunk(len(self.chosen), dim)):
            whole.narrow(dim, i * part.shape[dim], part.shape[dim]).copy_(part)
        return whole


class Expected:
    """What a case must give on a sample of its parts, and what plain PyTorch loses there.

    Args:
        case, call: the case and its call.
        reference: the op's reference.
        dtype: the dtype of the call.
    """

    def __init__(self, case: Case, call: Recorded, reference: Run, dtype: torch.dtype) -> None:
        self.case, self.by, self.reference, self.dtype = case, call.by, reference, dtype
        self.sample = Sample(case, call.arguments)
        self.arguments = {n: self.sample.cut(n, x) for n, x in call.arguments.items()}
        self.cotangents: dict[int, Tensor] = {}
        self.exact = self._outcome(reference, cast(self.arguments, torch.float64))
        self.bounds = self._bounds(dtype)

    def compare(self, run: Run, arguments: Arguments) -> tuple[str, float]:
        """Where `run(**arguments)` is worst, in words, and its error over the bound there.

        `arguments` have the values of the case's call; strides may differ. Above 1 the contract is
        broken; what is no matter of rounding is infinite.
        """
        outcome = self._outcome(run, arguments, whole=True)
        if fault := self._fault(arguments, outcome):
            return fault, math.inf
        return self._worst({n: self.sample.cut(n, x) for n, x in outcome.items()}, self.bounds)

    def compare_in(self, run: Run, dtype: torch.dtype) -> tuple[str, float]:
        """As `compare`, on the sample alone and with every argument in `dtype`."""
        return self._worst(self._outcome(run, cast(self.arguments, dtype)), self._bounds(dtype))

    def _fault(self, arguments: Arguments, outcome: Outcome) -> str | None:
        if outcome.keys() != self.exact.keys():
            return f"it gives {', '.join(outcome)}, not {', '.join(self.exact)}"
        judge = self.case.bench.judge
        fault = judge(arguments, _tensors(outcome.values())) if judge else None
        if fault:
            return fault
        infinite = [name for name, x in outcome.items() if x is not None and not _finite(x)]
        return f"not finite: {', '.join(infinite)}" if infinite else None

    def _worst(self, got: Outcome, bounds: Bounds) -> tuple[str, float]:
        worst, fault = 0.0, ""
        for name, x in got.items():
            exact = self.exact[name]
            if x is None or exact is None:
                continue
            if x.shape != exact.shape:
                return f"{name}: shape {(*x.shape,)}, not {(*exact.shape,)}", math.inf
            if name not in bounds:
                if self.case.bench.judge is None and not torch.equal(x, exact):
                    return f"{name}: integers differ from the exact ones", math.inf
                continue
            for kind, error, bound in zip(("L2", "largest"), errors(x, exact), bounds[name]):
                over = error / bound if math.isfinite(error) else math.inf
                if over > worst:
                    worst, fault = over, f"{name}: {kind} error {error:.2g}, may be {bound:.2g}"
        return fault, worst

    def _bounds(self, dtype: torch.dtype) -> Bounds:
        """Twice what the reference loses at `dtype`, plus the floor; integers have no bounds."""
        plain = self._outcome(self.reference, cast(self.arguments, dtype))
        return {
            name: tuple(2 * loss + FLOORS[dtype] for loss in errors(x.to(dtype), self.exact[name]))
            for name, x in plain.items()
            if x is not None and x.is_floating_point()
        }

    def _outcome(self, run: Run, arguments: Arguments, whole: bool = False) -> Outcome:
        """A call on the sample, or on the whole with cotangents of 0 outside the sample."""
        if not self.case.backward:
            own = {n: arguments[n].detach().clone() for n in self.case.bench.changes}
            with torch.no_grad():
                results = as_tuple(run(**{**arguments, **own}))
            return _named(results) | own
        leaves, results = differentiable(run, arguments, self.by)
        if not self.cotangents:
            # drawn at the call's dtype, so that every dtype is given the same numbers
            self.cotangents = {
                n: torch.randn_like(x, dtype=self.dtype)
                for n, x in enumerate(results)
                if x is not None and x.requires_grad
            }
        given = {n: c for n, c in self.cotangents.items() if results[n] is not None}
        outputs = [results[n] for n in given]
        if whole:
            given = {n: self.sample.put(f"result {n}", c, results[n]) for n, c in given.items()}
        weights = [c.to(x.dtype) for c, x in zip(given.values(), outputs)]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
        return _named(results) | {f"d{name}": x for name, x in zip(leaves, gradients)}


def differentiable(
    run: Run, arguments: Arguments, by: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
    """Fresh leaves for the names in `by`, and the results of the call on them."""
    leaves = {name: arguments[name].detach().requires_grad_() for name in by}
    with torch.enable_grad():
        return leaves, as_tuple(run(**{**arguments, **leaves}))


def spread(parts: int, most: int) -> list[int]:
    """At most `most` part numbers, evenly spread with the first and the last; one is the last."""
    most = min(most, parts)
    return [i * (parts - 1) // (most - 1) for i in range(most)] if most > 1 else [parts - 1]


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [x for x in values if isinstance(x, Tensor)]


def _named(results: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
    return {f"result {n}": None if x is None else x.detach() for n, x in enumerate(results)}


def _finite(x: Tensor) -> bool:
    """By the extremes, since a NaN makes both NaN; a mask would be half as large as the tensor."""
    if not x.is_floating_point() or not x.numel():
        return True
    return all(math.isfinite(extreme) for extreme in x.detach().aminmax())
