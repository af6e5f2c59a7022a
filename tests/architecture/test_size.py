"""Files and functions fit, and tests mirror the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from statistics import median

import pytest

from tests.architecture.common import FUNCTIONS, PRODUCT, ROOT
from tvkernels.core.table import KERNELS

LONGEST = 450
# the options that commands share, and the entry point: tests of the command line reach both
TESTED_ELSEWHERE = {"cli/app", "__main__"}


def bodies(tree: ast.Module) -> Iterator[tuple[ast.AST, int]]:
    """Each function, and the lines of its body without the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            documented = ast.get_docstring(node) is not None and len(node.body) > 1
            yield node, (node.end_lineno or 0) - node.body[documented].lineno + 1


def test_files_and_functions_fit():
    wrong = [file.path for file in PRODUCT if file.text.count("\n") > LONGEST]
    for file in PRODUCT:
        for node, length in bodies(file.tree):
            if length > 60:
                wrong.append(f"{file.path}:{node.lineno} {node.name}, {length} lines")
    assert not wrong


def test_few_files_are_nearly_too_long():
    """Of the whole tree, tests and benchmarks too: at most two lie within 5 % of the longest."""
    folders = ("tvkernels", "timeviper_fast", "benchmarks", "tests", "examples")
    lengths = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n")
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not [f"{path}, {length} lines" for path, length in lengths.items() if length > LONGEST]
    near = [path for path, length in lengths.items() if length > 0.95 * LONGEST]
    assert len(near) <= 2, near


def test_benchmarks_and_their_tests_stay_small():
    """Together at most 5,150 lines of Python."""
    folders = (ROOT / "benchmarks", ROOT / "tests/benchmarks")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in files)
    assert lines <= 5150, f"benchmarks and tests/benchmarks have {lines:,} lines, 5,150 are allowed"


@pytest.mark.parametrize("package", ["tvkernels", "timeviper_fast"])
def test_half_of_all_functions_have_at_most_six_lines(package):
    files = [file for file in PRODUCT if file.package == package]
    assert median(length for file in files for _, length in bodies(file.tree)) <= 6


def test_every_folder_has_a_folder_of_tests():
    product = [ROOT / "tvkernels" / "core", ROOT / "tvkernels" / "integrations"]
    product += [path.parent for path in (ROOT / "timeviper_fast").glob("*/__init__.py")]
    wanted = [f"ops/{op}" for op in KERNELS] + [path.name for path in product]
    assert not [name for name in wanted if not list((ROOT / "tests" / name).glob("test_*.py"))]


def test_every_module_of_timeviper_fast_has_tests_of_its_name():
    """In the folder of tests that mirrors its own; of modules beside the folders, in any."""
    home, tests = ROOT / "timeviper_fast", ROOT / "tests"
    missing = []
    for path in home.rglob("*.py"):
        module = path.relative_to(home).with_suffix("")
        if path.stem == "__init__" or module.as_posix() in TESTED_ELSEWHERE:
            continue
        # model/vision has its tests in tests/model
        folder = tests / module.parts[0] if len(module.parts) > 1 else tests
        missing += [] if list(folder.rglob(f"test_{path.stem}.py")) else [module.as_posix()]
    assert not missing
