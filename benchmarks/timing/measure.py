"""One case on the machine at hand: who is right, how long each takes, how far from the floor.

A row is a dict that goes to JSON as it is. It has the provider's figures, or under "reason" why it
has none: it does not fit, it fails the contract, it cannot run here.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import Floor
from benchmarks.timing.bench import Case, Provider, Recorded
from benchmarks.timing.clock import Timing, peak_bytes, sentence, time_all
from benchmarks.timing.correctness import Expected, Run, differentiable
from benchmarks.timing.machine import clock_watched
from benchmarks.timing.peers import providers, reference
from benchmarks.timing.store import Row, predicted

DTYPE = torch.bfloat16
# A few microseconds cannot be timed: a call is repeated on other tensors until its floors add up to
# this, at most as often as the 9B model has such a layer.
GRAPH_SECONDS, MOST_CALLS = 2e-4, 27
# the most that a plain copy is timed on
COPY_BYTES = 4e9
# the speeds of shapes.py hold for the GPU whose name contains this
NOMINAL = "H200"
PLAIN = ("reference", "compiled")
# ratios are to the first of these that has a time; other formulations of the op come before
PEERS = ("causal-conv1d", "mamba-ssm", "compiled", "reference")


class NoFigures(RuntimeError):
    """A provider is wrong or is not run at a shape; the text says why."""


class Lab:
    """Where cases run: on the GPU, or small on the CPU.

    The yardstick is bytes per second of a plain copy, FLOP per second of a plain matrix product.
    """

    def __init__(self, gpu: bool) -> None:
        self.gpu = gpu
        self.device = torch.device("cuda" if gpu else "cpu")
        self.providers, self.peers = providers(gpu)
        if gpu:
            # a backward pass runs on its forward pass's stream, and the default has no capture
            torch.cuda.set_stream(torch.cuda.Stream())
        self.nominal = gpu and NOMINAL in torch.cuda.get_device_name()
        self.yardstick = self._yardstick()

    def _yardstick(self) -> tuple[float, float]:
        half, side = (1 << 30, 8192) if self.gpu else (1 << 22, 256)
        a = torch.randn(side, side, dtype=DTYPE, device=self.device)
        runs = {"copy": [self._copy(Floor(2 * half))], "product": [lambda: a @ a]}
        copy, product = (t.seconds for t in time_all(runs, self.gpu).values())
        return 2 * half / copy, 2 * side**3 / product

    def facts(self) -> dict[str, str]:
        """What figures depend on beside the machine: the yardstick and the peers' versions."""
        bandwidth, flops = self.yardstick
        speeds = {"copy": f"{bandwidth / 1e9:,.0f} GB/s", "product": f"{flops / 1e12:,.1f} TFLOP/s"}
        return speeds | self.peers

    def run(self, case: Case) -> list[Row]:
        """The rows of one case, a row for each provider."""
        gc.collect()
        calls = 1
        if self.gpu:
            torch.cuda.empty_cache()
            calls = max(1, min(MOST_CALLS, round(GRAPH_SECONDS / case.floor.seconds())))
        torch.manual_seed(0)
        try:
            return self._rows(case, [case.call(self.device, DTYPE) for _ in range(calls)])
        except torch.OutOfMemoryError as error:
            return [{"case": case.name, "provider": "all", "reason": _reason(error)}]

    def _rows(self, case: Case, calls: list[Recorded]) -> list[Row]:
        op = calls[0].op
        expected = Expected(case, calls[0], reference(op), DTYPE)
        prepare: dict[str, Run] = {
            provider.name: partial(self._prepare, case, provider, calls, expected)
            for provider in (*self.providers, *case.bench.forms)
            if provider.function(op) is not None
        }
        prepare["copy"] = lambda row: [self._copy(case.floor) for _ in calls]
        rows: dict[str, Row] = {name: {"case": case.name, "provider": name} for name in prepare}
        runs: dict[str, list[Run]] = {}
        for name, row in rows.items():
            # names the provider if it ends the process
            print(f"{case.name}: {name}", file=sys.stderr, flush=True)
            try:
                runs[name] = prepare[name](row)
            except Exception as error:
                row["reason"] = _reason(error)
                error.__traceback__ = None  # it would keep the tensors alive
                gc.collect()
                if self.gpu:
                    # raises if the GPU is lost: it fails every later call of this process
                    torch.cuda.synchronize()
        with clock_watched() as clock:
            timings = time_all(runs, self.gpu)
        for name, timing in timings.items():
            rows[name] |= self._figures(case, name, timing) | clock
        _compare(rows, case)
        return list(rows.values())

    def _prepare(
        self, case: Case, provider: Provider, calls: list[Recorded], expected: Expected, row: Row
    ) -> list[Run]:
        """Check a provider and note in its row what is found; its calls, ready to be timed.

        Raises:
            Exception: why it cannot run here, or not rightly.
        """
        if provider.name in PLAIN and case.beyond_plain:
            most = case.bench.plain_up_to
            raise NoFigures(f"left out: plain PyTorch runs up to {most:,} tokens here")
        run = provider.function(calls[0].op)
        sets = [provider.in_reach(call.arguments) for call in calls]
        if sets[0] is not calls[0].arguments:
            row["note"] = "contiguous copies of its arguments"
        if provider.before:
            sets = [provider.before(arguments) for arguments in sets]
        if provider.checked_in:
            row["note"] = f"checked in {str(provider.checked_in).removeprefix('torch.')}"
            worst, over = expected.compare_in(run, provider.checked_in)
        else:
            worst, over = expected.compare(run, sets[0])
        row |= {"checked": str(expected.sample), "error_over_bound": round(over, 3)}
        if over > 1:
            raise NoFigures(f"fails the contract: {worst}")
        ready = [_ready(case, run, arguments, calls[0].by) for arguments in sets]
        ready[0]()
        if self.gpu:
            row["peak_mb"] = round(peak_bytes(ready[0]) / 1e6, 1)
        return ready

    def _figures(self, case: Case, name: str, timing: Timing | str) -> Row:
        """The part of a row that follows from its time, or why there is no time."""
        if isinstance(timing, str):
            return {"reason": timing}
        seconds = timing.seconds
        least = Floor(min(case.floor.bytes, COPY_BYTES)) if name == "copy" else case.floor
        figures = {"ms": 1e3 * seconds, "gb_per_s": least.bytes / seconds / 1e9}
        figures["of_floor"] = least.seconds(*self.yardstick) / seconds
        if least.flops:
            figures["tflop_per_s"] = least.flops / seconds / 1e12
        if self.nominal:
            figures["of_nominal"] = least.seconds() / seconds
            guess = predicted(case, name)
            if guess is not None:
                figures["predicted_ms"] = 1e3 * guess.seconds()
        rounded: Row = {key: _figure(x) for key, x in figures.items()}
        how = f"{timing.how}, {len(timing.samples)} rounds"
        return rounded | {"spread": round(timing.spread, 3), "how": how}

    def _copy(self, floor: Floor) -> Run:
        """A plain copy that reads and writes as many bytes as the floor has in all."""
        half = max(1, int(min(floor.bytes, COPY_BYTES)) // 2)
        source, target = torch.zeros(2, half, dtype=torch.int8, device=self.device)
        return lambda: target.copy_(source)


def _ready(case: Case, run: Run, arguments: Mapping[str, Any], by: tuple[str, ...]) -> Run:
    """One call, or one backward pass behind a forward pass that is made here."""
    if not case.backward:
        # each provider writes into its own copy
        own = {n: arguments[n].clone() for n in case.bench.changes}
        plain = {n: x.detach() if isinstance(x, Tensor) else x for n, x in arguments.items()} | own
        return torch.no_grad()(partial(run, **plain))
    leaves, results = differentiable(run, arguments, by)
    outputs = [x for x in results if x is not None and x.requires_grad]
    inputs, cotangents = list(leaves.values()), [torch.randn_like(x) for x in outputs]
    return partial(torch.autograd.grad, outputs, inputs, cotangents, retain_graph=True)


def _compare(rows: Mapping[str, Row], case: Case) -> None:
    """Note in each row with a time the peer, and the peer's time over its own."""
    order = (*(form.name for form in case.bench.forms), *PEERS)
    peer = next((name for name in order if "ms" in rows.get(name, {})), None)
    for name, row in rows.items():
        if peer and "ms" in row and name != "copy":
            row |= {"peer": peer, "ratio": _figure(rows[peer]["ms"] / row["ms"])}


def _reason(error: Exception) -> str:
    if isinstance(error, NoFigures):
        return str(error)
    # PyTorch's sentence says how much was asked for and how much is free
    return "does not fit: " * isinstance(error, torch.OutOfMemoryError) + sentence(error)


def _figure(x: float) -> float:
    """Four digits."""
    return float(f"{x:.4g}")
