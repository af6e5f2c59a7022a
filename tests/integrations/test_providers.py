"""Which package provides each function: unpatched, patched, with stand-ins, with real packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tvkernels
from tests.integrations.models import build
from tvkernels import __main__ as program
from tvkernels import patch_transformers, provide, providers
from tvkernels.integrations import patching
from tvkernels.integrations.providers import PACKAGES

ROOT = Path(__file__).parents[2]
PATCHED = {"causal_conv1d_fn", "causal_conv1d_update", "mamba2_chunk_scan"}
PATCHED |= {"mamba2_selective_state_update", patching.FUSED, "gated norm"}


def table():
    return {(row.library, row.function): row.provider for row in providers()}


def test_nobody_but_transformers():
    rows = table()
    assert {rows[path.partition(".")[0], name] for name, path in PACKAGES.items()} == {
        "not installed"
    }
    assert {rows["transformers", name] for name in PATCHED} == {"plain PyTorch"}


def test_patched_models_are_named_where_models_differ():
    build("bamba")
    with patch_transformers("mamba2"):
        rows = table()
    for name in PATCHED:
        ours, theirs = rows["transformers", name].split("; ")
        if ours.startswith("plain"):
            ours, theirs = theirs, ours
        assert ours == "tvkernels: mamba2"
        assert "bamba" in theirs.removeprefix("plain PyTorch: ").split(", ")
    assert {table()["transformers", name] for name in PATCHED} == {"plain PyTorch"}


def test_stand_ins():
    with provide("mamba_ssm"):
        rows = table()
    for name, path in PACKAGES.items():
        package = path.partition(".")[0]
        assert rows[package, name] == ("tvkernels" if package == "mamba_ssm" else "not installed")


@pytest.mark.parametrize(
    ("text", "provider"),
    [
        ("__version__ = '9.9'\ncausal_conv1d_fn = causal_conv1d_update = len", "causal_conv1d 9.9"),
        ("import causal_conv1d_cuda", "fails to import: ModuleNotFoundError: No module named "),
        ("", "fails to import: AttributeError: "),
    ],
)
def test_a_package_that_is_there_or_broken(tmp_path, monkeypatch, text, provider):
    (tmp_path / "causal_conv1d.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert table()["causal_conv1d", "causal_conv1d_fn"].startswith(provider)
    finally:
        sys.modules.pop("causal_conv1d", None)


def test_the_program():
    command = [sys.executable, "-m", "tvkernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line]
    assert ["library", "function", "provided by"] in lines
    assert {row.op for row in tvkernels.explain()} <= {line[0] for line in lines}
    assert ["mamba_ssm", "rmsnorm_fn", "not installed"] in lines
    assert ["transformers", "mamba2_chunk_scan", "plain PyTorch"] in lines


@pytest.mark.parametrize(("option", "code"), [("-h", 0), ("--help", 0), ("--halp", 2)])
def test_the_program_says_what_it_prints(option, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tvkernels", option])
    with pytest.raises(SystemExit) as left:
        program.main()
    assert left.value.code == code
    said = capsys.readouterr()
    assert "usage: python -m tvkernels" in said.out + said.err
    assert "provided by" not in said.out
