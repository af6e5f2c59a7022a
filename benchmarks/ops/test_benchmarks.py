"""`pytest benchmarks --benchmark-only`: the lists BENCHES, one test per case and provider.

A case is measured once, all its providers interleaved (timing/measure.py). pytest-benchmark gets
the samples of that measurement: its timer is a clock that each call moves by one sample.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.timing.bench import Case
from benchmarks.timing.measure import Lab, Row

NAMES = [path.stem for path in sorted(Path(__file__).parent.glob("bench_*.py"))]
LAB = Lab(torch.cuda.is_available())
MEASURED: dict[str, dict[str, Row]] = {}


class Clock:
    now = 0.0

    @classmethod
    def read(cls) -> float:
        return cls.now

    @classmethod
    def move(cls, samples: Iterator[float]) -> None:
        cls.now += next(samples)


def pairs() -> Iterator[Any]:
    for name in NAMES:
        for bench in importlib.import_module(f"benchmarks.ops.{name}").BENCHES:
            for case in bench.cases(small=not LAB.gpu):
                for provider in LAB.names(case):
                    yield pytest.param(case, provider, id=f"{case.name}-{provider}")


@pytest.mark.parametrize(("case", "provider"), list(pairs()))
@pytest.mark.benchmark(timer=Clock.read)
def test_case(case: Case, provider: str, benchmark: Any) -> None:
    if case.name not in MEASURED:
        MEASURED[case.name] = {row["provider"]: row for row in LAB.run(case)}
    rows = MEASURED[case.name]
    row = rows.get(provider) or rows["all"]
    reason = row.get("reason", "")
    if provider == "ours" and reason.startswith("fails the contract"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    benchmark.extra_info.update(row)
    samples = LAB.samples[case.name, provider]
    benchmark.pedantic(Clock.move, args=(iter(samples),), rounds=len(samples))
