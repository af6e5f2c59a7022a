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
from tvkernels.core.table import KERNELS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The import map of timeviper_fast: read it before adding an arrow. Which folders, and which modules
# beside them, the files of each folder (or such a module) may import.
FOLDERS = {
    "errors": "",
    "stops": "",
    "atomic": "",
    "config": "errors",
    "layout": "config errors",
    "presets": "config errors",
    "stages": "config errors presets",
    "video": "errors",
    "text": "errors layout",
    "embedded": "",
    "checkpoint": "config embedded errors presets",
    "training": "checkpoint config dataset errors layout model presets text timeviper",
    "dataset": "atomic config errors layout model text video",
    "evaluation": "config dataset errors inference layout model synthetic text timeviper video",
    "synthetic": "atomic config dataset errors model presets text timeviper training",
    "model": "config errors layout stops",
    "inference": "atomic checkpoint config errors layout model stages stops text video",
    "analysis": "config errors inference layout model stages stops timeviper video",
    "timeviper": "checkpoint config embedded errors inference model stages stops text video",
    "demo": "dataset errors evaluation model presets synthetic text timeviper video",
    "cli": "atomic checkpoint config demo embedded errors evaluation inference presets stages stops "
    "synthetic timeviper training video",
    "__main__": "cli",
    "__init__": "config inference presets timeviper",
}
# Which modules of its own folder each module of a folder may import.
MODULES = {
    "video": {
        "__init__": "stream video writer",
        "sampling": "times",
        "times": "",
        "preprocess": "",
        "arrays": "images",
        "boxes": "",
        "playlist": "",
        "container": "boxes playlist",
        "orientation": "",
        "continuity": "",
        "packets": "container continuity",
        "sample_table": "boxes container packets",
        "stamps": "packets",
        "timeline": "packets stamps",
        "ending": "boxes continuity",
        "index": "",
        "decode": "container index packets",
        "file": "container decode ending index orientation packets sample_table timeline",
        "images": "",
        "directory": "container images",
        "source": "arrays directory file images packets",
        "writer": "container",
        "pace": "sampling",
        "growing": "boxes",
        "film": "container file packets",
        "arriving": "directory film growing images",
        "stream": "arriving container film growing pace sampling video",
        "ahead": "",
        "video": "ahead packets sampling source times",
    },
    "text": {"__init__": "", "template": "", "prompt": "template", "byte_tokenizer": ""},
    "model": {
        "__init__": "",
        "vision.__init__": "",
        "vision.blocks": "",
        "vision.encoder": "vision.blocks",
        "vision.vit": "vision.blocks vision.encoder",
        "vision.dinov2": "vision.blocks vision.encoder",
        "vision.umt": "vision.blocks vision.encoder",
        "vision.internvideo2": "vision.blocks vision.encoder",
        "vision.build": "vision.dinov2 vision.encoder vision.internvideo2 vision.umt vision.vit",
        "projector": "",
        "cache": "",
        "fingerprint": "model",
        "qwen2": "",
        "transv": "qwen2",
        "stack": "cache qwen2 transv",
        "attention": "cache stack",
        "nemotron_h": "attention cache qwen2 stack transv",
        "initialize": "nemotron_h stack vision.internvideo2",
        "model": "nemotron_h projector vision.build",
    },
    "checkpoint": {
        "__init__": "",
        "files": "",
        "mapping": "",
        "config_file": "files",
        "nemotron_h": "mapping",
        "siglip": "mapping",
        "dinov2": "mapping",
        "umt": "mapping",
        "internvideo2": "mapping",
        "encoder": "dinov2 internvideo2 mapping siglip umt",
        "qwen2": "mapping",
        "llm": "mapping nemotron_h qwen2",
        "videochat_flash": "encoder mapping qwen2",
        "weights": "files mapping",
        "save": "config_file files weights",
        "load": "config_file files mapping videochat_flash weights",
        "upstream": "config_file encoder files llm mapping siglip videochat_flash weights",
    },
    "embedded": {"__init__": "", "models": ""},
    "inference": {
        "__init__": "",
        "facts": "",
        "flow": "",
        "gpus": "",
        "memory": "flow",
        "work": "flow",
        "budget": "flow gpus memory work",
        "plan": "budget flow gpus memory",
        "evidence": "",
        "evidence_plot": "evidence",
        "encode": "",
        "tiles": "",
        "watch": "",
        "request": "",
        "rows": "",
        "thinning": "rows",
        "prefix": "rows thinning",
        "ended": "plan prefix rows",
        "step": "",
        "generate": "ended plan prefix request step",
        "prompts": "ended generate request",
        "answer": "ended evidence generate request",
        "room": "plan request",
        "footage": "encode ended evidence",
        "tensor_file": "",
        "feature_file": "encode footage request tensor_file",
        "session_file": "ended footage prefix request rows tensor_file",
        "session": "answer ended evidence footage generate request room session_file",
        "fit": "plan",
        "open": "answer encode ended feature_file fit footage prefix request room session tiles",
        "bounded": "",
        "stream_file": "encode prefix request rows session_file tensor_file thinning",
        "stream": "answer bounded encode ended footage plan prefix request room session stream_file",
        "ask": "answer open request session",
    },
    "analysis": {
        "__init__": "",
        "labels": "",
        "blocked_layers": "labels",
        "blocking": "blocked_layers labels",
        "curves": "blocking",
        "groups": "",
        "heads": "",
        "rows": "heads",
        "attention": "rows",
        "mamba": "rows",
        "view": "groups heads",
        "look": "attention groups heads mamba rows view",
        "ask": "look view",
    },
    "cli": {
        "__init__": "",
        "app": "",
        "interrupt": "",
        "mistakes": "app",
        "output": "",
        "terminal": "output",
        "session": "app interrupt terminal",
        "index": "app interrupt mistakes terminal",
        "ask": "app interrupt output session terminal",
        "convert": "app interrupt terminal",
        "demo": "app interrupt terminal",
        "inspect": "app interrupt terminal",
        "plan": "app inspect interrupt terminal",
        "needle": "app interrupt terminal",
        "held_out": "app interrupt needle terminal",
        "eval": "app interrupt terminal",
        "train": "app interrupt terminal",
        "train_tiny": "app interrupt terminal",
        "watch": "app interrupt mistakes terminal",
        "main": "app ask convert demo eval held_out index inspect mistakes needle plan session train "
        "train_tiny watch",
    },
    "training": {
        "__init__": "",
        "loss": "",
        "selection": "",
        "packed": "loss selection",
        "optimizer": "",
        "config": "optimizer",
        "figures": "packed",
        "metrics": "",
        "parallel": "",
        "snapshot": "parallel",
        "start": "",
        "kinds": "config start",
        "stream": "config parallel",
        "phase": "config figures metrics optimizer packed parallel snapshot stream",
        "evaluate": "config figures phase",
        "trainer": "config evaluate kinds metrics parallel phase start stream",
    },
    "dataset": {
        "__init__": "",
        "sample": "",
        "randomness": "",
        "files": "",
        "rows": "",
        "media": "files",
        "kinds": "rows",
        "check": "kinds media rows",
        "frames": "media sample",
        "features": "files sample",
        "conversation": "features frames kinds media randomness rows sample",
        "joined": "conversation frames randomness rows sample",
        "mixture": "randomness sample",
        "packing": "mixture sample",
        "loader": "packing sample",
    },
    "synthetic": {
        "__init__": "",
        "dice": "",
        "glyphs": "",
        "shapes": "glyphs",
        "levels": "",
        "needle": "glyphs shapes",
        "pen": "shapes",
        "cards": "glyphs levels needle pen shapes",
        "artefacts": "",
        "world": "artefacts cards dice levels needle pen",
        "wordings": "",
        "questions": "glyphs needle shapes wordings",
        "lessons": "dice glyphs needle world",
        "vision": "glyphs lessons levels needle world",
        "pool": "glyphs lessons needle shapes world",
        "source": "lessons pen pool questions world",
        "kinds": "levels pen pool questions source world",
        "tiny": "kinds pool questions vision",
    },
    "evaluation": {
        "__init__": "",
        "score": "",
        "alike": "",
        "trial": "",
        "synthetic": "alike trial",
        "film": "alike trial",
        "controls": "",
        "rows": "score",
        "forms": "trial",
        "needle": "controls forms rows trial",
        "held_out": "needle rows score synthetic",
        "figures": "rows score",
        "curves": "figures",
        "sets.__init__": "",
        "sets.row": "",
        "sets.files": "",
        "sets.choices": "sets.files sets.row",
        "sets.spans": "sets.files sets.row",
        "sets.catalogue": "sets.choices sets.row sets.spans",
        "sets.prompts": "sets.row",
        "sets.answers": "sets.row",
        "sets.report": "score sets.answers sets.row",
        "sets.run": "needle rows sets.prompts sets.report sets.row",
    },
}
# imported inside a function, so that importing the package stays quick
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
    declared += [*extras["plot"], *extras["parquet"]]
    names = {re.split(r"\W", line.replace("-", "_"))[0] for line in declared}
    names = {"PIL" if name == "pillow" else name for name in names}
    known = sys.stdlib_module_names | names | {"tvkernels", "timeviper_fast"}
    assert not [
        f"{file.path}:{line} {module}"
        for file in PRODUCT
        for line, module, _, _ in file.imports()
        if module.split(".")[0] not in known
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
