"""Every configuration that a kernel ships is forced in a test of its op, on poisoned results."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tvkernels
from tests.contract import COMPILED, TRITON

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU"),
]


def modules(package: str, root: Path, pattern: str) -> Iterator[ModuleType]:
    for path in sorted(root.glob(pattern)):
        parts = path.relative_to(root).with_suffix("").parts
        yield importlib.import_module(".".join((package, *parts)))


def forced(module: ModuleType) -> list[Any]:
    """The values of the parameter `config` in a module of tests."""
    marks = (mark for f in vars(module).values() for mark in getattr(f, "pytestmark", ()))
    wanted = (mark for mark in marks if mark.name == "parametrize" and mark.args[0] == "config")
    return [config for mark in wanted for config in mark.args[1]]


def test_every_shipped_configuration_is_forced() -> None:
    """Of all targets in the interpreter; on a GPU its own."""
    from tvkernels.core.tune import Tuned, _target

    in_tests = list(modules("tests.ops", Path(__file__).parent, "*/test_*.py"))
    known = {id(config) for module in in_tests for config in forced(module)}
    kernels = {
        kernel
        for module in modules("tvkernels", Path(tvkernels.__file__).parent, "*/*kernel.py")
        for kernel in vars(module).values()
        if isinstance(kernel, Tuned)
    }
    shipped = {k: k.configs(_target()) if COMPILED else k.shipped() for k in kernels}
    missing = [
        f"{kernel.fn.__name__}: {config}"
        for kernel, configs in shipped.items()
        for config in configs
        if id(config) not in known
    ]
    assert len(kernels) > 20
    assert missing == []


def test_they_are_forced_on_poisoned_results() -> None:
    """An element that another configuration leaves unwritten is NaN, not what lay there before."""
    for module in modules("tests.ops", Path(__file__).parent, "*/test_*.py"):
        if forced(module):
            assert "poisoned_empty()" in inspect.getsource(module), module.__name__
