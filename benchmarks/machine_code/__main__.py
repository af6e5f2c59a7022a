"""The machine code of every kernel, on every target.

`python -m benchmarks.machine_code [--only TEXT]` prints a line for each build and its faults, and
writes .cache/compiled.md and results/compiled.md. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys

import triton

from benchmarks import RESULTS, ROOT
from benchmarks.machine_code import table
from benchmarks.machine_code.builds import Build, compile_all
from benchmarks.machine_code.cases import launches_on
from benchmarks.machine_code.gate import faults
from benchmarks.machine_code.targets import TARGETS

RESULT, FULL = RESULTS / "compiled.md", ROOT / ".cache/compiled.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="kernels whose name holds this; writes no file")
    only = parser.parse_args().only
    if os.environ.get("TRITON_INTERPRET"):
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing")
    print(" | ".join(table.COLUMNS))
    work = [(launch, on) for on in TARGETS.values() for launch in launches_on(on)]
    builds = compile_all([item for item in work if only in item[0].name], done=show)
    wrong = sum(bool(faults(build)) for build in builds)
    print(f"{len(builds)} builds with Triton {triton.__version__}, {wrong} wrong")
    if not only:
        FULL.parent.mkdir(exist_ok=True)
        FULL.write_text(table.full(triton.__version__, builds), encoding="utf-8")
        known = table.sections(RESULT.read_text(encoding="utf-8"))
        known[triton.__version__] = table.section(triton.__version__, builds)
        RESULT.write_text(table.page(known), encoding="utf-8")
    return bool(wrong)


def show(build: Build) -> None:
    words = [" | ".join(table.line(build)), *(f"  !! {fault}" for fault in faults(build))]
    print(*words, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
