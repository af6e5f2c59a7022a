"""What is written: public names, prints, asserts, excepts, README's tree, docstrings of folders."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import tvkernels
import tvkernels.reference
from tests.architecture.common import PACKAGES, PRODUCT, ROOT
from tvkernels.core.table import KERNELS

# programs print, and turn every error into one line
PROGRAMS = {"timeviper_fast/cli/main.py", "timeviper_fast/__main__.py"}
GLOBAL_SWITCHES = re.compile(
    r"set_flush_denormal|set_num_(interop_)?threads|set_default_(dtype|device)|torch\.manual_seed"
    r"|use_deterministic_algorithms|set_float32_matmul_precision|torch\.backends\.[\w.]+ ="
    r"|torch\._(dynamo|inductor)\.config|set_grad_enabled\(|os\.environ\[[^]]+\] ="
)
UNANCHORED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


@pytest.mark.parametrize("module", [*PACKAGES, tvkernels.reference], ids=lambda m: m.__name__)
def test_public_names_are_sorted_and_documented(module):
    assert module.__all__ == sorted(module.__all__)
    docs = {name: getattr(module, name).__doc__ or "" for name in module.__all__}
    # a dataclass or a named tuple without a docstring gets its signature as one
    assert not [name for name, doc in docs.items() if not doc or doc.startswith(f"{name}(")]


def test_library_code_does_not_print():
    assert not [
        f"{file.path}:{node.lineno}"
        for file in PRODUCT
        if file.path not in PROGRAMS
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


def test_contracts_raise_and_never_assert():
    """An assert may state what our own code guarantees; where users' arguments arrive, none does."""
    assert not [
        f"{file.path}:{node.lineno}"
        for file in PRODUCT
        if file.stem in ("op", "split_conv1d_scan", "layout")
        or re.search("/(core|cli|config)/", file.path)
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Assert)
    ]


def test_no_failed_import_decides_in_silence():
    wrong = []
    for file in PRODUCT:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.ExceptHandler) and file.path not in PROGRAMS:
                caught = ast.unparse(node.type) if node.type else "bare"
                raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                if re.search("ImportError|ModuleNotFoundError|bare", caught) and not raises:
                    wrong.append(f"{file.path}:{node.lineno} except {caught}")
    assert not wrong


def test_no_global_switch_and_no_loose_end():
    assert not [
        f"{file.path}:{number} {line.strip()}"
        for file in PRODUCT
        for number, line in enumerate(file.text.splitlines(), 1)
        if GLOBAL_SWITCHES.search(line) or UNANCHORED.search(line)
    ]


def test_readme_tree_has_one_line_per_folder():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```\w*\n(.*?)```", text, re.S) if "\ntvkernels/" in b)
    listed, above = [], ["", "", ""]
    for line in filter(str.strip, block.splitlines()):
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        above[depth] = entry
        listed.append("".join(above[:depth]) + entry)
    product = [path for path in listed if path.startswith(("tvkernels/", "timeviper_fast/"))]
    assert sorted(product) == sorted({f"{Path(file.path).parent.as_posix()}/" for file in PRODUCT})
    assert not [path for path in listed if not (ROOT / path).exists()]


def test_a_folder_says_what_its_modules_do():
    """In the docstring of its `__init__`, a line for each; ops have the same files in each folder."""
    wrong = []
    for file in PRODUCT:
        folder = (ROOT / file.path).parent
        if file.stem == "__init__" and folder.name not in KERNELS:
            named = re.findall(r"^ *(\w+\.py) {2,}\S", ast.get_docstring(file.tree) or "", re.M)
            modules = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
            if sorted(named) != sorted(modules):
                wrong.append(f"{file.path} {modules ^ set(named)}")
    assert not wrong


def test_a_folder_of_tests_or_benchmarks_says_what_lies_in_it():
    """In the docstring of its `__init__`: every module but tests, which say it themselves."""
    wrong = []
    for home in ("benchmarks", "tests"):
        for init in sorted((ROOT / home).rglob("__init__.py")):
            said = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
            modules = {path.name for path in init.parent.glob("*.py") if path.stem[:2] != "__"}
            wanted = {name for name in modules if not name.startswith("test_")}
            if init.parent.name not in KERNELS and not wanted <= set(said.split()):
                wrong.append(f"{init.relative_to(ROOT)} {wanted - set(said.split())}")
    assert not wrong
