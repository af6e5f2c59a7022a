"""The full table, a line per build, and the page that is kept: the worst build of each kernel.

The page has a section for each release of Triton, so that a run with one keeps the other's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import sha1
from itertools import groupby

from benchmarks.machine_code.builds import Build
from benchmarks.machine_code.targets import TARGETS
from benchmarks.table import markdown

COLUMNS = (
    "kernel", "config", "target", "registers", "spill stores", "in loops", "spill loads",
    "shared", "MMA", "blocks/SM", "first launched by",
)  # fmt: skip
PAGE = """# What the kernels compile to

Written by `python -m benchmarks.machine_code`, without a GPU, for the shapes of the 9B model: the
worst build of each kernel on each target. A cell is registers / bytes per thread of spill stores,
of those in loops, of spill loads / blocks per SM (per CU on AMD), a bound from registers, shared
memory and slots. The worst build does not compile, or else has the most spills in loops, the most
spills, the fewest blocks, the most registers. "builds" counts the sets of arguments that get code
of their own, on all targets, with a digest of their configurations. The same command writes a line
for each build, with shared memory and matrix instructions, to `.cache/compiled.md`.
"""
BROKEN = "does not compile"
Line = Sequence[str]


def line(build: Build) -> Line:
    """One build as a line of the full table."""
    launch, figures = build.launch, build.figures
    start = (launch.name, launch.config, build.target.name)
    if figures is None:
        return (*start, BROKEN, *[""] * 6, launch.case)
    stores, loads = (figures.spill_stores, figures.loop_spill_stores), figures.spill_loads
    counts = (figures.registers, *stores, loads, build.shared)
    mma = f"{figures.mma} {figures.mma_kind}" if figures.mma else "-"
    return (*start, *map(str, counts), mma, str(build.blocks_at_once), launch.case)


def full(version: str, lines: Iterable[Line]) -> str:
    return "\n".join([f"## Triton {version}", "", *markdown(COLUMNS, lines)]) + "\n"


def section(version: str, lines: Iterable[Line]) -> str:
    """One release's part of the page, from the lines of the full table."""
    rows = []
    for kernel, group in groupby(sorted(lines), key=lambda cells: cells[0]):
        builds = list(group)
        marked = f"{len(builds)} ({digest((cells[1], cells[2]) for cells in builds)})"
        on = [[cells for cells in builds if cells[2] == target] for target in TARGETS]
        worst = [max(each, key=badness, default=None) for each in on]
        rows.append([kernel, marked, *map(figures_of, worst)])
    return "\n".join([f"## Triton {version}", "", *markdown(["kernel", "builds", *TARGETS], rows)])


def digest(configurations: Iterable[tuple[str, str]]) -> str:
    """Of (configuration, target): the values, so that another name of an argument is no change."""
    values = sorted(re.sub(r"\b\w+=", "", config) + target for config, target in configurations)
    return sha1("\n".join(values).encode()).hexdigest()[:6]


def badness(cells: Line) -> tuple[int, ...]:
    if cells[3] == BROKEN:
        return (1, 0, 0, 0, 0, 0)
    registers, stores, loops, loads = map(int, cells[3:7])
    return (0, loops, stores, loads, -int(cells[9]), registers)


def figures_of(cells: Line | None) -> str:
    if cells is None:
        return "-"
    return BROKEN if cells[3] == BROKEN else f"{cells[3]} / {', '.join(cells[4:7])} / {cells[9]}"


def sections(text: str) -> dict[str, str]:
    """The sections of the page, or of the full table, by Triton's version."""
    parts = re.split(r"^(?=## Triton )", text, flags=re.MULTILINE)[1:]
    return {part.split()[2]: part.strip() for part in parts}


def cells_of(section: str) -> list[Line]:
    """The lines of a section's table."""
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [re.split(r" *\| *", line.strip("| ")) for line in lines]


def page(known: dict[str, str]) -> str:
    return "\n".join([PAGE, *("\n".join([known[v], ""]) for v in sorted(known))])
