"""The files of an op, its kernels, its reference and its signature."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

import tvkernels
import tvkernels.reference
from tests.architecture.common import DROP_INS, FUNCTIONS, KERNEL_FILE, ROOT, TVKERNELS
from tests.contract import NOT_OPS
from tvkernels.core.table import KERNELS


def test_the_table_names_every_op_folder():
    assert {file.path.split("/")[1] for file in TVKERNELS if file.stem == "op"} == set(KERNELS)


def test_every_op_folder_has_the_same_files():
    for op in KERNELS:
        files = {p.name for p in (ROOT / "tvkernels" / op).glob("*.py")}
        assert files >= {"__init__.py", "op.py", "reference.py", "kernel.py"}, op
        own = files - {"__init__.py", "op.py", "reference.py"}
        own -= set(filter(KERNEL_FILE.fullmatch, files))
        # ssd alone has more files, each named by what it computes
        assert not own or op == "ssd", f"{op}: {own}"


TRITON_FILES = [f for f in TVKERNELS if not f.path.startswith("tvkernels/core/")]
TRITON_FILES = [
    f for f in TRITON_FILES if any(i.module == "triton" and not i.on_use for i in f.imports())
]
# what differs between releases or vendors, is slow to interpret, or sums in an order of its own
NOT_IN_KERNELS = re.compile(
    r"\btl\.atomic_|make_block_ptr|tl\.advance|libdevice|inline_asm|associative_scan|except "
)
LENGTHS = re.compile(r"len|rows|batch|token|total|tiles|parts|span", re.I)


def test_a_kernel_is_imported_where_it_runs_and_chosen_by_the_backend():
    wrong = []
    for file in TVKERNELS:
        if file.stem != "op":
            continue
        wrong += [
            f"{file.path}:{line} {module}"
            for line, module, _, on_use in file.imports()
            if module.endswith("kernel") and not on_use
        ]
        compared = {
            id(side)
            for node in ast.walk(file.tree)
            if isinstance(node, ast.Compare)
            for side in (node.left, *node.comparators)
        }
        wrong += [
            f"{file.path}:{node.lineno} the answer of backend_for is not used"
            for node in ast.walk(file.tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) == "backend_for"
            and id(node) not in compared
        ]
    assert not wrong


def test_kernels_say_what_one_program_owns():
    """Its first line is a comment. A kernel is what is launched, a name that ends in _kernel."""
    wrong = []
    for file in TRITON_FILES:
        lines = file.text.splitlines()
        for node in file.tree.body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(d).endswith("triton.jit") for d in node.decorator_list
            ):
                comment = lines[node.body[0].lineno - 2].strip()
                if node.name.endswith("_kernel") and not comment.startswith("#"):
                    wrong.append(f"{file.path}:{node.lineno} {node.name}")
        launched = {
            node.func.value.id
            for node in ast.walk(file.tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Subscript)
            and isinstance(node.func.value, ast.Name)
        }
        wrong += [f"{file.path} {name}" for name in launched if not name.endswith("_kernel")]
    assert not wrong


def test_kernels_are_portable_and_sum_in_one_order():
    assert not [
        f"{file.path}:{number} {line.strip()}"
        for file in TRITON_FILES
        for number, line in enumerate(file.text.splitlines(), 1)
        if NOT_IN_KERNELS.search(line)
    ]


def test_tuning_never_depends_on_a_length():
    """A longer video must not time every configuration again."""
    wrong = []
    for file in TRITON_FILES:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "tuned",
                "triton.autotune",
            ):
                keys = [ast.literal_eval(k.value) for k in node.keywords if k.arg == "key"]
                if len(keys) != 1 or any(map(LENGTHS.search, keys[0])):
                    wrong.append(f"{file.path}:{node.lineno} {keys}")
    assert not wrong


def test_every_op_has_its_reference_on_the_face():
    ops = {n for n in tvkernels.__all__ if inspect.isfunction(getattr(tvkernels, n))}
    ops -= {*NOT_OPS, "mamba_split_conv1d_scan_combined"}  # the last is composed of ops
    for name in ops:
        reference = getattr(tvkernels.reference, f"{name}_ref")
        signatures = [inspect.signature(f) for f in (getattr(tvkernels, name), reference)]
        assert list(signatures[0].parameters) == list(signatures[1].parameters), name
    truths = {
        node.name
        for file in TVKERNELS
        if file.stem == "reference"
        for node in file.tree.body
        if isinstance(node, FUNCTIONS) and node.name.endswith("_ref")
    }
    assert truths == set(tvkernels.reference.__all__)


@pytest.mark.parametrize("name", DROP_INS)
def test_drop_in_functions_have_the_signature_they_stand_in_for(name):
    parameters = inspect.signature(getattr(tvkernels, name)).parameters.values()
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    ours = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert ", ".join(ours) == DROP_INS[name]
