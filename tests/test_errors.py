"""Errors carry the argument that they speak of, and survive a trip to another process."""

from __future__ import annotations

import pickle

import pytest

from timeviper_fast.errors import ArgumentError, CheckpointError, NotBuilt, VideoError, fail
from timeviper_fast.video.sampling import parse_policy


def test_an_error_is_a_sentence_and_its_parts():
    with pytest.raises(ValueError, match=r"^ask: chunk must be positive, got '0'; try 8192$") as it:
        fail("ask", "chunk", "be positive", "0", "try 8192")
    error = it.value
    assert isinstance(error, ArgumentError)
    assert (error.owner, error.argument, error.rule) == ("ask", "chunk", "be positive")
    assert error.with_name("--chunk") == "--chunk must be positive, got '0'; try 8192"


def test_the_part_of_an_argument_stays_when_its_name_changes():
    with pytest.raises(ArgumentError) as it:
        parse_policy("fps:1:most=2")
    assert it.value.argument == "policy"
    assert it.value.with_name("--sample").startswith(
        "--sample 'fps:1:most=2': option must be one of"
    )


@pytest.mark.parametrize(
    "error",
    [
        ArgumentError("ask", "chunk", "be positive", 0, "try 8192", " of tokens"),
        CheckpointError("load_weights", "file", "be readable", "x"),
        NotBuilt("upstream", "vision", "be one of a, b", "'c'"),
        VideoError("x.mp4: it ends early", "on_error", "on_error='use' takes the rest"),
    ],
)
def test_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
