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
    "room",
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
def test_a_room_exports_what_its_siblings_take(room):
    """In `__all__` is what other files take from the room, and nothing that is not there."""
    taken = set()
    for file in Path(config.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == room.__name__:
                taken |= {alias.name for alias in node.names}
    assert taken
    assert taken <= set(room.__all__) <= set(vars(room))
