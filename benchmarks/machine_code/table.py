"""The full table, a line per build, and the page that is kept: the worst build of each kernel.

The page has a section for each release of Triton, so that a run with one keeps the other's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import sha1
from itertools import groupby
from operator import attrgetter

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
TITLE = "## Triton "
BROKEN = "does not compile"


def line(build: Build) -> Sequence[str]:
    """One build as a line of the full table."""
    launch, figures = build.launch, build.figures
    start = (launch.name, launch.config, build.target.name)
    if figures is None:
        return (*start, BROKEN, *[""] * 6, launch.case)
    spills = (figures.spill_stores, figures.loop_spill_stores, figures.spill_loads)
    counts = map(str, (figures.registers, *spills, build.shared))
    mma = f"{figures.mma} {figures.mma_kind}" if figures.mma else "-"
    return (*start, *counts, mma, str(build.blocks_at_once), launch.case)


def full(version: str, builds: Iterable[Build]) -> str:
    return "\n".join([TITLE + version, "", *markdown(COLUMNS, sorted(map(line, builds))), ""])


def section(version: str, builds: Iterable[Build]) -> str:
    """One release's part of the page."""
    name = attrgetter("launch.name")
    rows = [_row(kernel, list(of)) for kernel, of in groupby(sorted(builds, key=name), key=name)]
    return "\n".join([TITLE + version, "", *markdown(["kernel", "builds", *TARGETS], rows)])


def mark(configurations: Iterable[tuple[str, str]]) -> str:
    """How many, and a digest of their values, so that another name of an argument is no change.

    configurations: (configuration, target) of each build.
    """
    values = sorted(re.sub(r"\b\w+=", "", config) + target for config, target in configurations)
    return f"{len(values)} ({sha1(chr(10).join(values).encode()).hexdigest()[:6]})"


def sections(page: str) -> dict[str, str]:
    """The sections of the page, by Triton's version."""
    parts = re.split(f"^(?={TITLE})", page, flags=re.MULTILINE)[1:]
    return {part.split()[2]: part.strip() for part in parts}


def marks(section: str) -> dict[str, str]:
    """The mark of each kernel in a section."""
    rows = [re.split(r" *\| *", row.strip("| ")) for row in section.splitlines()[4:]]
    return {kernel: mark for kernel, mark, *_ in rows}


def page(known: dict[str, str]) -> str:
    return "\n".join([PAGE, *(f"{known[version]}\n" for version in sorted(known))])


def _row(kernel: str, builds: Sequence[Build]) -> list[str]:
    worst = {build.target.name: build for build in sorted(builds, key=_badness)}
    configurations = [(build.launch.config, build.target.name) for build in builds]
    return [kernel, mark(configurations), *(_cell(worst.get(target)) for target in TARGETS)]


def _badness(build: Build) -> tuple[int, ...]:
    figures = build.figures
    if figures is None:
        return (1,)
    spills = (figures.loop_spill_stores, figures.spill_stores, figures.spill_loads)
    return (0, *spills, -build.blocks_at_once, figures.registers)


def _cell(build: Build | None) -> str:
    if build is None or build.figures is None:
        return "-" if build is None else BROKEN
    registers, stores, loops, loads = line(build)[3:7]
    return f"{registers} / {stores}, {loops}, {loads} / {build.blocks_at_once}"
