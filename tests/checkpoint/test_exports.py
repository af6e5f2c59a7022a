"""Each module of checkpoint/ exports what the modules beside it import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from timeviper_fast import config, errors
from timeviper_fast.checkpoint import (
    config_file,
    files,
    load,
    mapping,
    nemotron_h,
    save,
    siglip,
    upstream,
    weights,
)


@pytest.mark.parametrize(
    "module",
    [
        config,
        errors,
        config_file,
        files,
        load,
        mapping,
        nemotron_h,
        save,
        siglip,
        upstream,
        weights,
    ],
)
def test_a_module_exports_what_others_import(module):
    """`__all__` holds what other files import from the module, and nothing that is not there."""
    taken = set()
    for file in Path(errors.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == module.__name__:
                taken |= {alias.name for alias in node.names}
    assert taken
    assert taken <= set(module.__all__) <= set(vars(module))
