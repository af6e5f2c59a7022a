"""What is shipped: one pure-Python wheel of both packages, one version, nothing compiled."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tvkernels
from timeviper_fast import TimeViper

ROOT = Path(__file__).parents[1]
PACKAGES = ("tvkernels", "timeviper_fast")
MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
PAGE = ("client.js", "icon.svg", "index.html", "page.css", "page.js", "timeline.js")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy in which an earlier build has left a module since deleted."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "tests"):
        ignore = shutil.ignore_patterns("__pycache__", "data")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    stale = source / "build" / "lib" / "timeviper_fast" / "stale_module.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("deleted = True")
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    # this build leaves no files behind
    assert [path for path in (source / "build").rglob("*") if path.is_file()] == [stale]
    return source / "dist" / done.stdout.split()[-1]


def test_the_wheel_is_for_every_machine(wheel):
    assert wheel.name == f"timeviper_fast-{tvkernels.__version__}-py3-none-any.whl"


def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in [*(ROOT / package).rglob("*.py"), ROOT / package / "py.typed"]
    }
    page = {f"timeviper_fast/serve/static/{name}" for name in PAGE}
    assert names == sources | page | {f"timeviper_fast/embedded/tiny/{name}" for name in MODEL}


def test_the_embedded_model_in_the_wheel_is_small_and_loads(wheel, tmp_path):
    """Every tensor of the model is in its file and has its shape; the file holds no other tensor."""
    inside = "timeviper_fast/embedded/tiny"
    with zipfile.ZipFile(wheel) as archive:
        assert sum(archive.getinfo(f"{inside}/{name}").file_size for name in MODEL) < 10e6
        archive.extractall(tmp_path, [f"{inside}/{name}" for name in MODEL])
    model = TimeViper.from_pretrained(tmp_path / inside)
    stored = load_file(tmp_path / inside / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert len(model.tokenizer) <= model.config.backbone.vocab_size


def test_the_wheel_says_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = {Path(n).name: n for n in archive.namelist() if ".dist-info/" in n}
        metadata = Parser().parsestr(archive.read(info["METADATA"]).decode())
        scripts = archive.read(info["entry_points.txt"]).decode()
    assert "LICENSE" in info
    assert "timeviper-fast = timeviper_fast.__main__:main" in scripts
    plugin = "timeviper_fast = timeviper_fast.evaluation.lmms.manifest:manifest"
    assert f"[lmms_eval.models]\n{plugin}\n" in scripts
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    assert set(metadata.get_all("Provides-Extra")) == {
        "video", "vision", "train", "plot", "parquet", "ray", "serve", "page", "evaluation", "test", "dev", "docs",
    }  # fmt: skip
    needs = metadata.get_all("Requires-Dist")
    assert "torch>=2.11" in needs
    assert any(re.match(r"triton>=3\.6; platform_system == .Linux.", need) for need in needs)
    # training needs torch alone: the extra brings figures
    trains = [need for need in needs if "'train'" in need.replace('"', "'")]
    assert [re.split(r"[<>=;\[ ]", need)[0] for need in trains] == ["tensorboard"]
    # only the extra itself may require what it needs
    core = {re.split(r"[<>=;\[ ]", need)[0] for need in needs if "extra ==" not in need}
    assert not core & {
        "av",
        "pillow",
        "pyarrow",
        "pytest",
        "ray",
        "fastapi",
        "uvicorn",
        "openai",
        "httpx2",
        "hypothesis",
        "ruff",
        "mypy",
        "mkdocs-material",
        "tensorboard",
    }


def test_constraints_pin_every_direct_requirement_but_triton(wheel):
    pins = re.findall(r"^([\w-]+)==\S+", (ROOT / "constraints.txt").read_text(), re.M)
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    needs = {re.split(r"[<>=;\[ ]", need)[0] for need in metadata.get_all("Requires-Dist")}
    missing = {need.replace("_", "-") for need in needs} - {pin.replace("_", "-") for pin in pins}
    assert missing == {"triton", "timeviper-fast"}
