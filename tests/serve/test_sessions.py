"""Sessions that are kept by their bytes."""

from __future__ import annotations

import pytest

from tests.serve.common import OPENING
from timeviper_fast.serve.sessions import Sessions, bytes_held


@pytest.fixture(scope="module")
def session(model, root):
    return model.open(root / "a.mp4", policy="fps:1")


def test_the_one_that_was_asked_longest_ago_leaves_first(session):
    size = bytes_held(session)
    assert size > 0
    sessions = Sessions(2 * size)
    keys = [(digest, OPENING) for digest in "abc"]
    sessions.put(keys[0], session)
    sessions.put(keys[1], session)
    assert sessions.get(keys[0]) is session
    sessions.put(keys[2], session)
    assert [sessions.get(key) is session for key in keys] == [True, False, True]
    assert (len(sessions), sessions.nbytes) == (2, 2 * size)
    assert (sessions.hits, sessions.misses) == (3, 1)


def test_bytes_bound_what_is_kept(session):
    size = bytes_held(session)
    sessions = Sessions(size - 1)
    sessions.put(("a", OPENING), session)
    assert (len(sessions), sessions.nbytes) == (0, 0)
    sessions = Sessions(size)
    for _ in range(2):
        sessions.put(("a", OPENING), session)
    assert (len(sessions), sessions.nbytes) == (1, size)
