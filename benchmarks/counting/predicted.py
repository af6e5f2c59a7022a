"""The prediction of results/counted.md for a row: the time of its counted bytes and FLOPs."""

from __future__ import annotations

import functools

from benchmarks import RESULTS
from benchmarks.shapes import Floor
from benchmarks.timing.bench import Case

KERNELS = {"ours": "tvkernels", "mamba-ssm": "mamba-ssm"}


@functools.cache
def counted() -> dict[tuple[str, str], Floor]:
    """Per token, sequence or frame: bytes from memory and FLOPs, by row and provider."""
    lines = (RESULTS / "counted.md").read_text(encoding="utf-8").splitlines()
    heads, _, *body = (line.strip("| ").split(" | ") for line in lines if line.startswith("|"))
    rows = [dict(zip(heads, cells)) for cells in body]
    return {
        (row["op and shape"], row["kernels"]): Floor(
            1e3 * float(row["cold kB"].replace(",", "")), 1e6 * float(row["dot MFLOP"])
        )
        for row in rows
    }


def predicted(case: Case, provider: str) -> Floor | None:
    """The bytes and FLOPs of a provider at a case, as counted; None where they were not."""
    name, _, rest = case.bench.name.partition(", ")
    backward = "backward" * case.backward
    for words in ((name, case.shape.name, rest, backward), (name, rest, backward)):
        row = ", ".join(filter(None, words))
        each = counted().get((row, KERNELS.get(provider, provider)))
        if each is not None:
            return Floor(each.bytes * case.count, each.flops * case.count)
    return None
