"""Who imports whom, and what importing costs."""

from __future__ import annotations

import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tvkernels
import tvkernels.reference
from tests.architecture.common import KERNEL_FILE, PRODUCT, ROOT, TVKERNELS
from tests.architecture.import_map import FOLDERS, MODULES
from tvkernels.core.table import KERNELS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ON_FIRST_USE = {"av", "huggingface_hub", "PIL", "rich", "safetensors", "tokenizers"}
ON_FIRST_USE |= {"transformers", "triton", "typer"}
TIMEVIPER = [file for file in PRODUCT if file.package == "timeviper_fast"]


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def may_import(path: str) -> str:
    """What a file of tvkernels may import of tvkernels, as a regular expression."""
    first, *rest = path.removeprefix("tvkernels/").split("/")
    if first == "core":
        return r"core\.\w+"
    doors, truths = "|".join(KERNELS), rf"({'|'.join(KERNELS)})\.reference"
    if first == "integrations":
        return rf"{doors}|{truths}|core\.(backend|checks|holds)|split_conv1d_scan|integrations\.\w+"
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
        "op.py": rf"{first}\.\w+|core\.(backend|checks|library|plain)",
    }.get(rest[-1], rf"{own}|core\.(checks|plain)")


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
    declared += [*extras["plot"], *extras["parquet"], *extras["ray"], *extras["serve"]]
    names = {re.split(r"\W", line.replace("-", "_"))[0] for line in declared}
    names = {"PIL" if name == "pillow" else name for name in names}
    known = sys.stdlib_module_names | names | {"tvkernels", "timeviper_fast"}
    # lmms-eval imports its adapter, and brings tqdm along
    plugin = {"lmms_eval", "tqdm"}
    assert not [
        f"{file.path}:{line} {module}"
        for file in PRODUCT
        for line, module, _, _ in file.imports()
        if module.split(".")[0] not in known
        and not ("/evaluation/lmms/" in file.path and module.split(".")[0] in plugin)
    ]


@pytest.mark.parametrize("package", ["tvkernels", "timeviper_fast"])
def test_importing_imports_nothing_heavy(package):
    """With all of its names, because a package may import a module when its name is first used."""
    code = (
        "import sys, torch; old = set(sys.modules)\n"
        f"from {package} import *; print(*set(sys.modules) - old)"
    )
    heavy = {name.split(".")[0] for name in python(code).split()} & ON_FIRST_USE
    assert not heavy


@pytest.mark.parametrize("package", ["tvkernels", "timeviper_fast"])
def test_importing_takes_well_under_a_second_beyond_torch(package):
    """In the process's own time, which other work on the machine does not lengthen much."""
    code = (
        "import time, torch; start = time.process_time()\n"
        f"from {package} import *; print(time.process_time() - start)"
    )
    assert min(float(python(code)) for _ in range(3)) < 0.5


def test_ops_run_where_there_is_no_triton_and_no_transformers():
    code = (
        "import sys; sys.modules.update(triton=None, transformers=None)\n"
        "import torch, tvkernels, timeviper_fast\n"
        "print(tvkernels.rms_norm(torch.full((1, 2), 3.0), torch.ones(2), 0.0).tolist())"
    )
    assert python(code) == "[[1.0, 1.0]]"
