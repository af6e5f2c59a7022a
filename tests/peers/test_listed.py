"""Every test that README.md beside this names is there, and so is every variant in its brackets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "tests" / "peers" / "README.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`(?: \(([^)]+)\))?", PAGE)


@pytest.mark.parametrize(("file", "test", "variants"), NAMED)
def test_what_is_listed_is_there(file, test, variants):
    path = ROOT / file
    text = path.read_text(encoding="utf-8")
    assert f"\ndef {test}(" in text
    if not variants.startswith("each"):
        shared = path.with_name("common.py")
        text += shared.read_text(encoding="utf-8") if shared.exists() else ""
        # a variant's name may go on: "D per channel, groups = heads"
        assert all(f'"{variant}' in text for variant in filter(None, variants.split(", ")))


def test_the_page_is_read():
    assert len(NAMED) == PAGE.count("::test_") > 30
