"""The house rules that a machine can hold: who imports whom, what importing costs, what is written.

The product is read as text and syntax, so a rule holds for code that no test happens to run. Each
test collects what breaks its rule, as "file:line what", and wants the list empty.
"""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import timeviper_fast
import tvkernels
import tvkernels.reference
from tests.contract import NOT_OPS
from tvkernels.core.table import KERNELS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = (tvkernels, timeviper_fast)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# The import map of timeviper_fast: read it before adding an arrow. Which folders, and which modules
# beside them, the files of each folder (or such a module) may import.
FOLDERS = {
    "errors": "",
    "stops": "",
    "config": "errors",
    "layout": "config errors",
    "presets": "config errors",
    "video": "errors",
    "text": "errors layout",
    "checkpoint": "config errors presets",
    "training": "errors layout model text",
    "model": "config errors layout stops",
    "inference": "config errors layout model stops text video",
    "timeviper": "checkpoint config errors inference model text video",
    "demo": "errors presets video text model timeviper",
    "cli": "checkpoint demo errors inference presets stops timeviper video",
    "__main__": "cli",
    "__init__": "config inference presets timeviper",
}
# Which modules of its own folder each module of a folder may import.
MODULES = {
    "video": {
        "__init__": "video writer",
        "sampling": "",
        "preprocess": "",
        "arrays": "",
        "file": "",
        "images": "",
        "writer": "file",
        "video": "arrays file images sampling",
    },
    "text": {"__init__": "", "prompt": "", "byte_tokenizer": ""},
    "model": {
        "__init__": "",
        "vision.__init__": "",
        "vision.vit": "",
        "projector": "",
        "cache": "",
        "transv": "",
        "stack": "cache transv",
        "nemotron_h": "cache stack transv",
        "initialize": "nemotron_h",
        "model": "nemotron_h projector vision.vit",
    },
    "checkpoint": {
        "__init__": "",
        "files": "",
        "mapping": "",
        "config_file": "files",
        "nemotron_h": "mapping",
        "siglip": "mapping",
        "weights": "files mapping",
        "save": "config_file files weights",
        "load": "config_file files weights",
        "upstream": "config_file files mapping nemotron_h siglip weights",
    },
    "inference": {
        "__init__": "",
        "plan": "",
        "encode": "",
        "generate": "plan",
        "request": "generate",
        "ask": "encode generate plan request",
    },
    "cli": {
        "__init__": "",
        "app": "",
        "terminal": "",
        "ask": "app terminal",
        "convert": "app terminal",
        "demo": "app terminal",
        "inspect": "app terminal",
        "main": "app ask convert demo inspect terminal",
    },
    "training": {"__init__": "", "loss": ""},
}

# imported inside a function, so that importing the package stays quick
ON_FIRST_USE = {"av", "huggingface_hub", "PIL", "rich", "safetensors", "tokenizers"}
ON_FIRST_USE |= {"transformers", "triton", "typer"}
# programs print, and turn every error into one line
PROGRAMS = {"timeviper_fast/cli/main.py", "timeviper_fast/__main__.py"}

# Names, order and defaults of mamba-ssm 2.3.2 and causal-conv1d 1.7: what is written for them runs.
DROP_INS = {
    "causal_conv1d_fn": "x, weight, bias=None, seq_idx=None, initial_states=None, "
    "return_final_states=False, final_states_out=None, activation=None",
    "causal_conv1d_update": "x, conv_state, weight, bias=None, activation=None, "
    "cache_seqlens=None, conv_state_indices=None",
    "causal_conv1d_varlen_states": "x, cu_seqlens, state_len",
    "layernorm_fn": "x, weight, bias, z=None, eps=1e-06, group_size=None, "
    "norm_before_gate=True, is_rms_norm=False",
    "mamba_chunk_scan_combined": "x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, "
    "initial_states=None, seq_idx=None, cu_seqlens=None, dt_softplus=False, "
    "dt_limit=(0.0, inf), return_final_states=False, return_varlen_states=False",
    "mamba_split_conv1d_scan_combined": "zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, "
    "chunk_size, initial_states=None, seq_idx=None, dt_limit=(0.0, inf), "
    "return_final_states=False, activation='silu', rmsnorm_weight=None, rmsnorm_eps=1e-06, "
    "outproj_weight=None, outproj_bias=None, headdim=None, ngroups=1, norm_before_gate=True",
    "rmsnorm_fn": "x, weight, bias, z=None, eps=1e-06, group_size=None, norm_before_gate=True",
    "selective_state_update": "state, x, dt, A, B, C, D=None, z=None, dt_bias=None, "
    "dt_softplus=False, state_batch_indices=None",
}

GLOBAL_SWITCHES = re.compile(
    r"set_flush_denormal|set_num_(interop_)?threads|set_default_(dtype|device)|torch\.manual_seed"
    r"|use_deterministic_algorithms|set_float32_matmul_precision|torch\.backends\.[\w.]+ ="
    r"|torch\._(dynamo|inductor)\.config|set_grad_enabled\(|os\.environ\[[^]]+\] ="
)
UNANCHORED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


class Import(NamedTuple):
    line: int
    module: str
    names: tuple[str, ...]
    on_use: bool
    """inside a function, or for type checkers only"""


class File(NamedTuple):
    """One product file; `path` is relative to the repository, as tvkernels/tome/op.py."""

    path: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def stem(self) -> str:
        return Path(self.path).stem

    def imports(self) -> Iterator[Import]:
        def walk(node: ast.AST, on_use: bool) -> Iterator[Import]:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.Import):
                    for alias in child.names:
                        yield Import(child.lineno, alias.name, (), on_use)
                elif isinstance(child, ast.ImportFrom):
                    names = tuple(alias.name for alias in child.names)
                    yield Import(
                        child.lineno, "." * child.level + (child.module or ""), names, on_use
                    )
                else:
                    late = isinstance(child, FUNCTIONS) or (
                        isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                    )
                    yield from walk(child, on_use or late)

        yield from walk(self.tree, on_use=False)

    def modules_of(self, package: str) -> Iterator[tuple[int, str]]:
        """(line, module) for each module of `package`; from folder import module is one too."""
        for line, module, names, _ in self.imports():
            if f"{module}.".startswith(f"{package}."):
                for name in names or ("",):
                    yield line, f"{module}.{name}" if is_module(module, name) else module


def is_module(folder: str, name: str) -> bool:
    """Whether `from folder import name` gives a module, and not what `__init__` exports so."""
    home = ROOT / folder.replace(".", "/")
    if not name or not ((home / name).is_dir() or (home / f"{name}.py").exists()):
        return False
    return f'"{name}"' not in (home / "__init__.py").read_text(encoding="utf-8")


def read(path: Path) -> File:
    text = path.read_text(encoding="utf-8")
    return File(path.relative_to(ROOT).as_posix(), text, ast.parse(text))


PRODUCT = [read(p) for package in PACKAGES for p in sorted((ROOT / package.__name__).rglob("*.py"))]
TVKERNELS = [file for file in PRODUCT if file.package == "tvkernels"]
TIMEVIPER = [file for file in PRODUCT if file.package == "timeviper_fast"]


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# kernels too many for one file have more files, each named by what it computes; device functions
# that several of them call stand in device.py
KERNEL_FILE = re.compile(r"(\w+_)?kernel\.py|(\w+_)?device\.py")


# who imports whom


def may_import(path: str) -> str:
    """What a file of tvkernels may import of tvkernels, as a regular expression."""
    first, *rest = path.removeprefix("tvkernels/").split("/")
    if first == "core":
        return r"core\.\w+"
    doors, truths = "|".join(KERNELS), rf"({'|'.join(KERNELS)})\.reference"
    if first == "integrations":
        return rf"{doors}|{truths}|core\.(backend|checks)|split_conv1d_scan|integrations\.\w+"
    if not rest:
        return {
            "__main__.py": r"core\.backend|integrations",
            "__init__.py": rf"{doors}|core\.backend|split_conv1d_scan|integrations",
            "reference.py": rf"{truths}|split_conv1d_scan",
        }.get(first, rf"{doors}|{truths}|core\.(backend|checks)")
    own = rf"{first}\.(?!op\b|kernel\b)\w+"
    if KERNEL_FILE.fullmatch(rest[-1]):
        return rf"{own}|core\.(tune|tl)"
    return {
        "__init__.py": rf"{first}\.(op|reference)",
        "op.py": rf"{first}\.\w+|core\.(backend|checks|library)",
    }.get(rest[-1], rf"{own}|core\.plain")


def test_tvkernels_imports_downwards_only():
    assert not [
        f"{file.path}:{line} {module}"
        for file in TVKERNELS
        for line, module in file.modules_of("tvkernels")
        if not re.fullmatch(rf"tvkernels\.({may_import(file.path)})", module)
    ]


def test_tvkernels_needs_torch_alone_until_a_kernel_runs():
    wrong = []
    for file in TVKERNELS:
        compiled = KERNEL_FILE.fullmatch(Path(file.path).name) or file.path.endswith(
            ("core/tune.py", "core/tl.py")
        )
        allowed = (
            sys.stdlib_module_names | {"torch", "tvkernels"} | ({"triton"} if compiled else set())
        )
        for line, module, _, on_use in file.imports():
            if module.split(".")[0] not in allowed | ({"triton"} if on_use else set()):
                wrong.append(f"{file.path}:{line} {module}")
    assert not wrong


def test_timeviper_fast_uses_public_names_of_tvkernels_only():
    public = {*tvkernels.__all__, "__version__"}
    assert not [
        f"{file.path}:{line} {module} {set(names) - public}"
        for file in TIMEVIPER
        for line, module, names, _ in file.imports()
        if module.split(".")[0] == "tvkernels"
        and (module != "tvkernels" or not set(names) <= public)
    ]


def place(module: str) -> tuple[str, str]:
    """(folder or module beside the folders, module in that folder) of a module of timeviper_fast."""
    folder, _, inner = module.removeprefix("timeviper_fast").lstrip(".").partition(".")
    if (ROOT / "timeviper_fast" / folder).is_dir() and folder:
        return folder, inner or "__init__"
    return folder or "__init__", ""


def test_timeviper_fast_imports_downwards_only():
    wrong = []
    for file in TIMEVIPER:
        folder, module = place(file.path.removesuffix(".py").replace("/", "."))
        for line, imported in file.modules_of("timeviper_fast"):
            to_folder, to_module = place(imported)
            if to_folder == folder:
                allowed = to_module in MODULES.get(folder, {}).get(module, "").split()
            else:
                allowed = to_folder in FOLDERS.get(folder, "").split()
            if not allowed:
                wrong.append(f"{file.path}:{line} {imported}")
    assert not wrong


def test_the_import_map_has_no_circle_and_no_ghost():
    places = [place(file.path.removesuffix(".py").replace("/", ".")) for file in TIMEVIPER]
    order = graphlib.TopologicalSorter({name: row.split() for name, row in FOLDERS.items()})
    assert sorted(order.static_order()) == sorted({folder for folder, _ in places})
    assert set(MODULES) == {folder for folder, module in places if module}
    for folder, rows in MODULES.items():
        order = graphlib.TopologicalSorter({name: row.split() for name, row in rows.items()})
        assert sorted(order.static_order()) == sorted(m for f, m in places if f == folder)


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["video"], *extras["vision"], *extras["train"]]
    names = {re.split(r"\W", line.replace("-", "_"))[0] for line in declared}
    names = {"PIL" if name == "pillow" else name for name in names}
    known = sys.stdlib_module_names | names | {"tvkernels", "timeviper_fast"}
    assert not [
        f"{file.path}:{line} {module}"
        for file in PRODUCT
        for line, module, _, _ in file.imports()
        if module.split(".")[0] not in known
    ]


# what importing costs


# with all its names: a package may import them when they are first asked for


@pytest.mark.parametrize("package", ["tvkernels", "timeviper_fast"])
def test_importing_imports_nothing_heavy(package):
    code = (
        "import sys, torch; old = set(sys.modules)\n"
        f"from {package} import *; print(*set(sys.modules) - old)"
    )
    heavy = {name.split(".")[0] for name in python(code).split()} & ON_FIRST_USE
    assert not heavy


@pytest.mark.parametrize("package", ["tvkernels", "timeviper_fast"])
def test_importing_takes_well_under_a_second_beyond_torch(package):
    code = (
        "import time, torch; start = time.perf_counter()\n"
        f"from {package} import *; print(time.perf_counter() - start)"
    )
    assert min(float(python(code)) for _ in range(3)) < 0.5


def test_ops_run_where_there_is_no_triton_and_no_transformers():
    code = (
        "import sys; sys.modules.update(triton=None, transformers=None)\n"
        "import torch, tvkernels, timeviper_fast\n"
        "print(tvkernels.rms_norm(torch.full((1, 2), 3.0), torch.ones(2), 0.0).tolist())"
    )
    assert python(code) == "[[1.0, 1.0]]"


# the files of an op


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


# what is written


@pytest.mark.parametrize("module", [*PACKAGES, tvkernels.reference], ids=lambda m: m.__name__)
def test_public_names_are_sorted_and_documented(module):
    assert module.__all__ == sorted(module.__all__)
    docs = {name: getattr(module, name).__doc__ or "" for name in module.__all__}
    # a dataclass or a named tuple without a docstring gets its signature as one
    assert not [name for name, doc in docs.items() if not doc or doc.startswith(f"{name}(")]


def test_files_and_functions_fit():
    wrong = [file.path for file in PRODUCT if file.text.count("\n") > 450]
    for file in PRODUCT:
        for node in ast.walk(file.tree):
            if isinstance(node, FUNCTIONS):
                documented = ast.get_docstring(node) is not None and len(node.body) > 1
                length = (node.end_lineno or 0) - node.body[documented].lineno + 1
                if length > 60:
                    wrong.append(f"{file.path}:{node.lineno} {node.name}, {length} lines")
    assert not wrong


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
        if file.stem in ("op", "split_conv1d_scan", "config", "layout")
        or re.search("/(core|cli)/", file.path)
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


# the README


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
