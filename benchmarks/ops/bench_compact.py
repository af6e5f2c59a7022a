"""Dropped tokens out of a sequence: the step after the selection."""

from __future__ import annotations

from benchmarks.shapes.calls import leave
from benchmarks.timing.bench import Bench, Split

# rows move whole, so a range of channels is an independent part
BENCHES = (Bench("rows taken out", leave, split=Split(64, {"x": 2}, (2, 2, 0))),)
