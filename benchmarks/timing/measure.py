"""One case on the machine at hand: who is right, how long each takes, how far from the floor.

A row is a dict that goes to JSON as it is. It has the provider's figures, or under "reason" why it
has none: it does not fit, it fails the contract, it is not there, there was no time.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import tvkernels
from benchmarks.counting.predicted import predicted
from benchmarks.shapes.floors import Floor
from benchmarks.timing.bench import Case, Form, Recorded
from benchmarks.timing.clock import Timing, on_stream, peak_bytes, sentence, time_all
from benchmarks.timing.correctness import Exact, differentiable
from benchmarks.timing.peers import Provider, providers, reference

Row = dict[str, Any]
Run = Callable[..., Any]

DTYPE = torch.bfloat16
# a few microseconds cannot be timed: a call is repeated on other tensors until its floors add up to
# this, at most as often as the 9B model has such a layer
GRAPH_SECONDS, MOST_CALLS = 2e-4, 27
# the most that a plain copy is timed on
COPY_BYTES = 4e9
# the speeds of floors.py hold for the GPU whose name contains this
NOMINAL = "H200"
# set-up of one provider at one case, compiling included; of the compiled reference less
SETUP_SECONDS, COMPILE_SECONDS = 150.0, 30.0
PLAIN = ("reference", "compiled")
# PyTorch's words for what it could not allocate
TRIED = re.compile(r"Tried to allocate ([\d.]+ \w+)")


class DeviceLost(RuntimeError):
    """The GPU fails every later call of this process; what was measured is in `rows`."""

    def __init__(self, reason: str, rows: list[Row]) -> None:
        super().__init__(reason)
        self.rows = rows


class NoFigures(RuntimeError):
    """A provider that is wrong or is not run at a shape; the text says why."""


class TimeIsUp(BaseException):
    """A provider's set-up took too long. No Exception, since a compiler would catch that."""


@dataclass
class Lab:
    """Where cases run.

    Args:
        gpu: on the GPU, else small on the CPU.
        deadline: time.monotonic() that set-up must not pass.
        samples: of the last case, seconds of a call by case and provider.
        given_up: providers that timed out at a shape, as they would at the next, longer one.
    """

    gpu: bool
    deadline: float = float("inf")
    samples: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    given_up: dict[tuple[str, bool, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if self.gpu else "cpu")
        self.providers, self.absent = providers(self.gpu)

    @cached_property
    def yardstick(self) -> tuple[float, float]:
        """Bytes per second of a plain copy, FLOP per second of a plain matrix product."""
        half, side = (1 << 30, 8192) if self.gpu else (1 << 22, 256)
        half = int(min(half, self.free() / 8))
        with on_stream(self.gpu):
            copy = self._copy(Floor(2 * half))
            a = torch.randn(side, side, dtype=DTYPE, device=self.device)
            timings = time_all({"copy": [copy], "product": [lambda: a @ a]}, self.gpu)
        seconds = [t.seconds for t in timings.values() if isinstance(t, Timing)]
        return 2 * half / seconds[0], 2 * side**3 / seconds[1]

    def free(self) -> float:
        """Bytes that can still be allocated."""
        if not self.gpu:
            return float("inf")
        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info()[0])

    def run(self, case: Case) -> list[Row]:
        """The rows of one case.

        Raises:
            DeviceLost: an error from which the process does not recover.
        """
        copies = self._copies(case.floor)
        needed, free = _bytes_of(case), self.free()
        if needed > free:
            return [_none(case, "all", f"does not fit: {_gb(needed)}, {_gb(free)} are free")]
        copies = max(1, min(copies, int(free / 4 / needed) if free < float("inf") else copies))
        # measured while nothing else is allocated
        self.yardstick  # noqa: B018
        torch.manual_seed(0)
        try:
            with on_stream(self.gpu):
                return self._rows(case, [case.call(self.device, DTYPE) for _ in range(copies)])
        except torch.OutOfMemoryError:
            reason = f"does not fit: {_gb(needed)} of arguments, {_gb(free)} were free"
            return [_none(case, "all", reason)]
        except DeviceLost:
            raise
        except Exception as error:
            rows = [_none(case, "all", sentence(error))]
            if self._lost():
                raise DeviceLost(f"{case.name}: {sentence(error)}", rows) from None
            return rows
        finally:
            gc.collect()
            # a lost GPU has been reported already
            with contextlib.suppress(RuntimeError):
                self.free()

    def _rows(self, case: Case, calls: list[Recorded]) -> list[Row]:
        exact = Exact(case, calls[0], reference(calls[0].op), DTYPE)
        rows: dict[str, Row] = {}
        runs: dict[str, list[Callable[[], Any]]] = {}
        for provider in self._able(case, calls[0].op):
            name = provider.name
            try:
                rows[name], runs[name] = self._prepare(case, provider, calls, exact)
            except (Exception, TimeIsUp) as error:
                rows[name] = _none(case, name, self._reason(error, case, provider))
                error.__traceback__ = None  # it would keep the tensors alive
                gc.collect()
                lost = self._lost()
                if lost:
                    every = list(rows.values())
                    raise DeviceLost(f"{name} at {case.name}: {lost}", every) from None
        try:
            runs["copy"] = [self._copy(case.floor) for _ in calls]
            rows["copy"] = {"case": case.name, "provider": "copy"}
        except torch.OutOfMemoryError:
            rows["copy"] = _none(case, "copy", f"does not fit: {_gb(_copied(case.floor))}")
        for name, timing in time_all(runs, self.gpu).items():
            if isinstance(timing, str):
                rows[name]["reason"] = timing
                continue
            self._enter(rows[name], case, timing)
            self.samples[case.name, name] = timing.samples
        _compare(rows, case)
        return list(rows.values())

    def names(self, case: Case) -> list[str]:
        """The providers of a case, as they stand in its rows."""
        return [p.name for p in self._able(case, case.call("meta", DTYPE).op)] + ["copy"]

    def _able(self, case: Case, op: str) -> Iterator[Provider]:
        """The providers that have the op."""
        yield from (p for p in self.providers if p.function(op) is not None)
        for name, form in case.bench.forms.items():
            yield Provider(name, functools.partial(_of_form, form))

    def _prepare(
        self, case: Case, provider: Provider, calls: list[Recorded], exact: Exact
    ) -> tuple[Row, list[Callable[[], Any]]]:
        """A provider's row so far, and its calls, each ready to be timed.

        Raises:
            Exception: why it cannot run here, or not rightly.
        """
        given_up = self.given_up.get((case.bench.name, case.backward, provider.name))
        if given_up:
            raise TimeIsUp(given_up)
        if provider.name in PLAIN and case.beyond_plain:
            most = case.bench.plain_up_to
            raise NoFigures(f"left out: plain PyTorch runs up to {most:,} tokens here")
        run = provider.function(calls[0].op)
        assert run is not None
        row: Row = {"case": case.name, "provider": provider.name}
        with within(self._patience(provider)):
            sets = [_in_reach(provider, call.arguments) for call in calls]
            if sets[0] is not calls[0].arguments:
                row["note"] = "contiguous copies of its arguments"
            form = case.bench.forms.get(provider.name)
            if form is not None and form.before is not None:
                sets = [form.before(arguments) for arguments in sets]
            if form is not None and form.checked_in is not None:
                worst, over = exact.compare_in(run, form.checked_in)
                row["note"] = f"checked in {str(form.checked_in).removeprefix('torch.')}"
            else:
                worst, over = exact.compare(run, sets[0])
            row |= {"checked": exact.checked, "error_over_bound": round(over, 3)}
            if over > 1:
                raise NoFigures(f"fails the contract: {worst}")
            ready = [_ready(case, run, arguments, calls[0].by) for arguments in sets]
            peak = peak_bytes(ready[0], self.gpu)
        if peak is not None:
            row["peak_mb"] = round(peak / 1e6, 1)
        return row, ready

    def _patience(self, provider: Provider) -> float:
        left = self.deadline - time.monotonic()
        if provider.name == "compiled":
            return min(COMPILE_SECONDS, left / 4)
        return min(SETUP_SECONDS, left)

    def _reason(self, error: BaseException, case: Case, provider: Provider) -> str:
        if isinstance(error, (NoFigures, tvkernels.BackendUnavailable)):
            return str(error)
        if isinstance(error, torch.OutOfMemoryError):
            asked = TRIED.search(str(error))
            beside = f", it asked for {asked[1]} more" if asked else ""
            return f"does not fit: {_gb(self.free())} were free beside its arguments{beside}"
        if isinstance(error, TimeIsUp):
            key = (case.bench.name, case.backward, provider.name)
            return self.given_up.setdefault(key, f"{error} at {case.shape.name}")
        return sentence(error)

    def _lost(self) -> str:
        try:
            if self.gpu:
                torch.cuda.synchronize()
        except RuntimeError as error:
            return sentence(error)
        return ""

    def _enter(self, row: Row, case: Case, timing: Timing) -> None:
        least = case.floor
        row |= {"ms": _figure(1e3 * timing.seconds), "spread": round(timing.spread, 3)}
        row["how"] = timing.how
        if row["provider"] == "copy":
            least = Floor(_copied(least))
        row["gb_per_s"] = _figure(least.bytes / timing.seconds / 1e9)
        if least.flops:
            row["tflop_per_s"] = _figure(least.flops / timing.seconds / 1e12)
        row["of_floor"] = _figure(least.seconds(*self.yardstick) / timing.seconds)
        if self._is_nominal():
            guess = predicted(case, row["provider"])
            if guess is not None:
                row["predicted_ms"] = _figure(1e3 * guess.seconds())
            row["of_nominal"] = _figure(least.seconds() / timing.seconds)

    def _is_nominal(self) -> bool:
        return self.gpu and NOMINAL in torch.cuda.get_device_name()

    def _copies(self, floor: Floor) -> int:
        if not self.gpu:
            return 1
        return max(1, min(MOST_CALLS, round(GRAPH_SECONDS / floor.seconds())))

    def _copy(self, floor: Floor) -> Callable[[], Any]:
        """As many bytes read and written as the floor has, half of them each."""
        half = max(1, int(_copied(floor)) // 2)
        source, target = torch.zeros(2, half, dtype=torch.int8, device=self.device).unbind()
        return lambda: target.copy_(source)


def _of_form(form: Form, op: str) -> Run:
    return form.run


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """TimeIsUp after so many seconds; only the main thread can have such a limit."""
    if threading.current_thread() is not threading.main_thread() or seconds == float("inf"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeIsUp(f"not ready within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        # the alarm may ring inside a no_grad, whose end would then not run
        with torch.enable_grad():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _ready(
    case: Case, run: Run, arguments: Mapping[str, Any], by: tuple[str, ...]
) -> Callable[[], Any]:
    """One call, or one backward pass behind a forward pass that was made here."""
    if not case.backward:
        # each provider writes into a copy of its own
        own = {n: arguments[n].clone() for n in case.bench.changes}
        plain = {n: x.detach() if isinstance(x, Tensor) else x for n, x in arguments.items()} | own

        def forward() -> Any:
            with torch.no_grad():
                return run(**plain)

        return forward
    leaves, results = differentiable(run, arguments, by)
    outputs = [x for x in results if x is not None and x.requires_grad]
    cotangents = [torch.randn_like(x) for x in outputs]
    inputs = list(leaves.values())
    return lambda: torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True)


def _in_reach(provider: Provider, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, as dense copies where a provider's offsets would not reach their end.

    Raises:
        OverflowError: not even a dense copy is in reach.
    """
    if provider.reach is None:
        return arguments
    tensors = {n: x for n, x in arguments.items() if isinstance(x, Tensor)}
    far = {n: x for n, x in tensors.items() if _span(x) >= provider.reach}
    for n, x in far.items():
        if x.numel() >= provider.reach:
            raise OverflowError(f"{n} has {x.numel():,} elements, its offsets {provider.reach:,}")
    return {**arguments, **{n: _dense(x) for n, x in far.items()}} if far else arguments


def _span(x: Tensor) -> int:
    """Elements from the first to the last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))


def _dense(x: Tensor) -> Tensor:
    """A copy without gaps, its dimensions in the same order in memory."""
    order = sorted(range(x.ndim), key=lambda d: -x.stride(d))
    back = [order.index(d) for d in range(x.ndim)]
    return x.detach().permute(order).contiguous().permute(back)


def _compare(rows: Mapping[str, Row], case: Case) -> None:
    """Into each row with a time: the peer's time over its own."""
    order = (*case.bench.forms, "causal-conv1d", "mamba-ssm", "compiled", "reference")
    peer = next((n for n in order if "ms" in rows.get(n, {})), None)
    for row in rows.values():
        if peer and "ms" in row and row["provider"] != "copy":
            row |= {"peer": peer, "ratio": _figure(rows[peer]["ms"] / row["ms"])}


def _bytes_of(case: Case) -> int:
    """Bytes of a case's arguments, with all of the storage that views of it hold."""
    tensors = [x for x in case.call("meta", DTYPE).arguments.values() if isinstance(x, Tensor)]
    storages = {x.untyped_storage()._cdata: x.untyped_storage() for x in tensors}
    arguments = sum(storage.nbytes() for storage in storages.values())
    return max(arguments, int(case.floor.bytes))


def _none(case: Case, provider: str, reason: str) -> Row:
    return {"case": case.name, "provider": provider, "reason": reason}


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"


def _figure(x: float) -> float:
    """Four digits."""
    return float(f"{x:.4g}")


def _copied(floor: Floor) -> float:
    return min(floor.bytes, COPY_BYTES)
