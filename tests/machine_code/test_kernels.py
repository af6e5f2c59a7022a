"""Every kernel compiles for every target, in every configuration it ships, and passes the gate.

The kernels are read off the source; the cases of benchmarks/machine_code must launch each of them.
All builds of the selected tests are made at once, on all processors, before the first test judges
its own; Triton's cache makes a second run of the same source short.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import triton

import tvkernels
from benchmarks import RESULTS
from benchmarks.machine_code import table
from benchmarks.machine_code.builds import Build, compile_all
from benchmarks.machine_code.cases import launches_of, launches_on, scan_corners
from benchmarks.machine_code.gate import faults
from benchmarks.machine_code.targets import TARGETS

PACKAGE = Path(tvkernels.__file__).parent


def kernels() -> list[str]:
    """Functions under triton.jit that some line launches, as kernel[grid](...)."""
    jitted, launched = set(), set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                if any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
                    jitted.add(node.name)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                launched.add(ast.unparse(node.func.value).split(".")[-1])
    return sorted(jitted & launched)


CASES = [(kernel, target) for kernel in kernels() for target in TARGETS]


@pytest.fixture(scope="session")
def builds(request: pytest.FixtureRequest) -> dict[tuple[str, str], list[Build]]:
    """The builds that the selected tests judge, by kernel and target."""
    wanted = {
        (item.callspec.params["kernel"], item.callspec.params["target"])
        for item in request.session.items
        if hasattr(item, "callspec") and {"kernel", "target"} <= item.callspec.params.keys()
    }
    work = [
        (launch, TARGETS[target])
        for target in sorted({target for _, target in wanted})
        for launch in launches_on(TARGETS[target])
        if (launch.name, target) in wanted
    ]
    made: dict[tuple[str, str], list[Build]] = {case: [] for case in wanted}
    for build in compile_all(work):
        made[build.launch.name, build.target.name].append(build)
    return made


@pytest.mark.parametrize(("kernel", "target"), CASES)
def test_every_build_passes_the_gate(builds, kernel, target):
    made = builds[kernel, target]
    assert made, (
        f"no case launches {kernel}: add one to OP_CASES in benchmarks/machine_code/cases.py"
    )
    wrong = [
        f"{kernel} [{build.launch.config}] of '{build.launch.case}' {fault}"
        for build in made
        for fault in faults(build)
    ]
    assert not wrong, f"{len(wrong)} faults on {target}:\n" + "\n".join(wrong)


def test_the_largest_scans_fit_a_hopper():
    """One configuration of each launch must fit; the tuner skips those that do not."""
    target = TARGETS["sm_90"]
    fits: dict[tuple[str, str], bool] = {}
    for build in compile_all([(launch, target) for launch in launches_of(scan_corners(), target)]):
        assert build.figures is not None, f"{build.launch.name}: {build.error}"
        case = build.launch.name, build.launch.case
        fits[case] = fits.get(case, False) or build.shared <= target.shared_per_block
    assert len(fits) > 15
    assert all(fits.values()), [case for case, fit in fits.items() if not fit]


def test_the_page_is_of_these_kernels():
    """Its figures may be older than the kernels, the set of its configurations may not."""
    sections = table.sections((RESULTS / "compiled.md").read_text(encoding="utf-8"))
    if triton.__version__ not in sections:
        pytest.skip(f"results/compiled.md has no section of Triton {triton.__version__}")
    shipped: dict[str, list[tuple[str, str]]] = {}
    for target in TARGETS.values():
        for launch in launches_on(target):
            shipped.setdefault(launch.name, []).append((launch.config, target.name))
    marks = {name: table.mark(of) for name, of in shipped.items()}
    again = "write it anew: python -m benchmarks.machine_code"
    assert table.marks(sections[triton.__version__]) == marks, again


def test_there_are_kernels_to_judge():
    assert CASES


def test_a_launch_of_every_kernel_compiles():
    """The first launch of each kernel on one target: quick enough for CI, with every release.

    The interpreter takes code that a release of Triton does not compile.
    """
    target = TARGETS["sm_90"]
    first = {launch.name: launch for launch in reversed(launches_on(target))}
    assert set(first) == set(kernels())
    builds = compile_all([(launch, target) for launch in first.values()])
    assert [f"{build.launch.name}: {build.error}" for build in builds if build.error] == []
