"""What a benchmark is: one op at named shapes. benchmarks/ops.py lists them in BENCHES."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import tvkernels
from benchmarks.shapes import FLOORS, Floor, Prepare


class Shape(NamedTuple):
    """`size` is tokens of each of `batch` sequences, sequences of a decode step, or frames."""

    name: str
    size: int
    batch: int = 1


# the shapes with speed targets come first, so an interrupted run has measured those
PREFILL = (
    Shape("32k", 32_768), Shape("80k", 80_000), Shape("160k", 160_000), Shape("2k", 2048),
    Shape("8 x 2k", 2048, 8), Shape("8 x 32k", 32_768, 8),
)  # fmt: skip
DECODE = tuple(Shape(f"batch {n}", n) for n in (1, 8, 64))
# 16 tokens a frame
FRAMES = tuple(Shape(f"{s.name} tokens", s.batch * s.size // 16) for s in PREFILL)

# tokens of a video's keys: 10,000 frames, then fewer and more
VIDEOS = tuple(Shape(f"{n // 1000}k", n) for n in (80_000, 16_000, 160_000))


class Split(NamedTuple):
    """How a call falls into independent parts, so that some of them can be checked alone.

    Args:
        parts: the number of equal parts; None for the length of the first argument's dimension.
        arguments: by name, the dimension along which an argument is cut. The parts share the rest.
        results: the dimension along which each result is cut.
    """

    parts: int | None
    arguments: Mapping[str, int]
    results: Sequence[int]


@dataclass(frozen=True)
class Provider:
    """Something that runs ops.

    Args:
        function: gives the callable of an op by its public name, or None.
        reach: the number of elements that its 32-bit offsets can address; None for no limit.
        checked_in: the dtype to check its values in, if its rounding changes discrete choices.
        before: makes its arguments of the op's, outside the timing, as a model does once.
    """

    name: str
    function: Callable[[str], Callable[..., Any] | None]
    reach: int | None = None
    checked_in: torch.dtype | None = None
    before: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    def in_reach(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments, with dense copies of those that its offsets do not address to the end.

        Raises:
            OverflowError: they do not address a dense copy either.
        """
        reach = self.reach or float("inf")
        far = {n: x for n, x in arguments.items() if isinstance(x, Tensor) and _span(x) >= reach}
        for n, x in far.items():
            if x.numel() >= reach:
                raise OverflowError(f"{n} has {x.numel():,} elements, its offsets {reach:,}")
        # the result of an elementwise operation is dense and keeps the order of dimensions
        return arguments | {n: x.detach() * 1 for n, x in far.items()} if far else arguments


def _span(x: Tensor) -> int:
    """The number of elements from the first to the last in memory."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))


@dataclass(frozen=True)
class Bench:
    """One op with its shapes.

    Args:
        name: begins the name of each case. FLOORS has its floor; if it also has one of
            "<name>, backward", the backward pass is timed too.
        prepare: makes the call, as in shapes.py.
        shapes: what is timed on a GPU.
        small: the size that runs on a CPU.
        split: independent parts; None checks the call as a whole.
        changes: names of the arguments that are written in place.
        forms: other formulations of the op.
        plain_up_to: tokens up to which plain PyTorch, compiled or not, is timed; None for all.
            Longer calls are checked on one part only.
        judge: (arguments, results) -> what is wrong with the integer results, or None. Without it
            they must equal the reference's.
    """

    name: str
    prepare: Prepare
    shapes: Sequence[Shape] = PREFILL
    small: int = 64
    split: Split | None = None
    changes: Sequence[str] = ()
    forms: Sequence[Provider] = ()
    plain_up_to: int | None = None
    judge: Callable[[Mapping[str, Any], Sequence[Tensor]], str | None] | None = None

    def cases(self, small: bool) -> Iterator[Case]:
        """Shape by shape, forward and backward."""
        for shape in (Shape("small", self.small),) if small else self.shapes:
            yield Case(self, shape, backward=False)
            if f"{self.name}, backward" in FLOORS:
                yield Case(self, shape, backward=True)


@dataclass(frozen=True)
class Case:
    """One direction of one benchmark at one shape; measured, it has a row for each provider."""

    bench: Bench
    shape: Shape
    backward: bool

    @property
    def name(self) -> str:
        return f"{self.bench.name}, {self.shape.name}{', backward' * self.backward}"

    @property
    def count(self) -> int:
        """Tokens, sequences or frames in all."""
        return self.shape.size * self.shape.batch

    @property
    def floor(self) -> Floor:
        return FLOORS[self.bench.name + ", backward" * self.backward](self.count)

    @property
    def beyond_plain(self) -> bool:
        """Whether plain PyTorch is too slow here to be timed."""
        most = self.bench.plain_up_to
        return most is not None and self.count > most

    def call(self, device: torch.device | str, dtype: torch.dtype) -> Recorded:
        """The call's public name and fresh arguments on `device`."""
        options = {"batch": self.shape.batch} if self.shape.batch > 1 else {}
        with torch.device(device):
            run, by = self.bench.prepare(_Recorder(), self.shape.size, dtype, **options)
            op, arguments = run()
        names = [n for n, v in arguments.items() if any(v is leaf for leaf in by)]
        return Recorded(op, arguments, tuple(names))


class Recorded(NamedTuple):
    """A call before it is made: the public function, its arguments, names to differentiate by."""

    op: str
    arguments: dict[str, Any]
    by: tuple[str, ...]


class _Recorder:
    """Stands in for a provider's functions and returns the name and arguments of a call."""

    def __getattr__(self, op: str) -> Callable[..., tuple[str, dict[str, Any]]]:
        signature = inspect.signature(getattr(tvkernels, op))
        return lambda *args, **options: (op, signature.bind(*args, **options).arguments)
