"""What tests of the command line share: the check of one line, an edited model."""

from __future__ import annotations

import sys


def one_line(result, *words):
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


def without_pyav(monkeypatch):
    """Importing av fails, as where the extra `video` is not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "av"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)
