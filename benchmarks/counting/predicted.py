"""What results/counted.md predicts for a row: the time of its counted bytes and FLOPs."""

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
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    heads, *body = table
    found = {}
    for cells in body[1:]:
        row = dict(zip(heads, cells))
        kb, mflop = (float(row[n].replace(",", "")) for n in ("cold kB", "dot MFLOP"))
        found[row["op and shape"], row["kernels"]] = Floor(1e3 * kb, 1e6 * mflop)
    return found


def predicted(case: Case, provider: str) -> Floor | None:
    """The bytes and FLOPs of a provider at a case, as counted; None where they were not."""
    name, _, rest = case.bench.name.partition(", ")
    backward = "backward" * case.backward
    at_this_shape = ", ".join(filter(None, (name, case.shape.name, rest, backward)))
    at_any = ", ".join(filter(None, (case.bench.name, backward)))
    for row in (at_this_shape, at_any):
        each = counted().get((row, KERNELS.get(provider, provider)))
        if each is not None:
            return Floor(each.bytes * case.count, each.flops * case.count)
    return None
