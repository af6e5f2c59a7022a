"""What every kernel compiles to: `python -m benchmarks.machine_code [--only TEXT]`.

Prints one line per kernel, configuration and target with what is wrong with it, and writes
results/compiled.md, where each release of Triton has a section. Needs no GPU; figures are the
compiler's, so they are the same on every machine. Leaves with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable

import triton

from benchmarks import RESULTS
from benchmarks.machine_code.builds import Build, compile_all
from benchmarks.machine_code.cases import launches_on
from benchmarks.machine_code.gate import faults
from benchmarks.machine_code.targets import TARGETS

RESULT = RESULTS / "compiled.md"
COLUMNS = (
    "kernel", "config", "target", "registers", "spill stores", "in loops", "spill loads",
    "shared", "MMA", "blocks/SM", "first launched by",
)  # fmt: skip
HEAD = """# What the kernels compile to

Written by `python -m benchmarks.machine_code`, without a GPU, for the shapes of the 9B model. Spill
stores (all, and those that a loop repeats) and loads are bytes per thread as they stand in the
code, shared memory is bytes per block, MMA counts matrix instructions as they stand in the code.
Blocks/SM (per CU on AMD) is a bound from registers, shared memory and slots. A kernel stands once
for each set of arguments that gets code of its own.
"""


def row(build: Build) -> tuple[str, ...]:
    """One line of the table, as text."""
    launch, figures = build.launch, build.figures
    start = (launch.name, launch.config, build.target.name)
    if figures is None:
        return (*start, "does not compile", *[""] * 6, launch.case)
    stores, loads = (figures.spill_stores, figures.loop_spill_stores), figures.spill_loads
    counts = (figures.registers, *stores, loads, build.shared)
    mma = f"{figures.mma} {figures.mma_kind}" if figures.mma else "-"
    return (*start, *map(str, counts), mma, str(build.blocks_at_once), launch.case)


def section(version: str, rows: Iterable[tuple[str, ...]]) -> str:
    lines = [COLUMNS, tuple("-" for _ in COLUMNS), *rows]
    return "\n".join([f"## Triton {version}\n", *(f"| {' | '.join(x)} |" for x in lines)]) + "\n"


def sections(text: str) -> dict[str, str]:
    """The sections of results/compiled.md by Triton's version."""
    parts = re.split(r"^(?=## Triton )", text, flags=re.MULTILINE)[1:]
    return {part.split()[2]: part.strip() + "\n" for part in parts}


def main() -> int:
    parser = argparse.ArgumentParser(description="What every kernel compiles to, on every target.")
    parser.add_argument("--only", default="", help="kernels whose name holds this; writes no file")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET"):
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing")

    wrong = 0

    def show(build: Build) -> None:
        nonlocal wrong
        found = faults(build)
        wrong += bool(found)
        print(" | ".join(row(build)), *(f"  !! {fault}" for fault in found), sep="\n", flush=True)

    work = [
        (launch, target)
        for target in TARGETS.values()
        for launch in launches_on(target)
        if arguments.only in launch.name
    ]
    print(" | ".join(COLUMNS))
    builds = compile_all(work, done=show)
    print(f"{len(builds)} builds with Triton {triton.__version__}, {wrong} wrong")
    if not arguments.only:
        known = sections(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        known[triton.__version__] = section(triton.__version__, sorted(map(row, builds)))
        RESULT.write_text("\n".join([HEAD, *(known[v] for v in sorted(known))]), encoding="utf-8")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
