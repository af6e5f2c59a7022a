"""What tests of the command line share: the check of one line, an edited model."""

from __future__ import annotations


def one_line(result, *words):
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err
