"""What opening a video refuses before a frame is encoded, and what it notes."""

from __future__ import annotations

import pytest
import torch

from tests.random_model import tiny_model


def test_the_stops_of_the_way(model, video):
    session = model.open(video, policy="uniform:6")
    names = [stop.name for stop in session.stops if stop.milliseconds]
    assert {"decode", "vision", "merge", "project", "prefill"} <= set(names)
    assert session.footage.seconds.shape == (6,)
    answer = session.ask("What moves?", max_new_tokens=2)
    by_name = {stop.name: stop for stop in answer.stops}
    assert by_name["vision"].milliseconds == 0
    assert by_name["prefill"].milliseconds > 0


def test_frames_that_are_lost_are_not_announced(model):
    """With on_error="use" the number of tokens is known at the end only."""
    frames = torch.randint(0, 255, (9, 48, 48, 3), dtype=torch.uint8)
    strict = model.open(frames, policy="fps:1", chunk=32)
    lenient = model.open(frames, policy="fps:1", chunk=32, on_error="use")
    one, two = (s.ask("What?", max_new_tokens=4) for s in (strict, lenient))
    assert (one.token_ids, one.kept_seconds) == (two.token_ids, two.kept_seconds)


def test_a_video_that_fits_no_question_is_refused_at_once(model, video):
    seen: list[str] = []
    with pytest.raises(ValueError, match="max_new_tokens must fit the model's window"):
        model.ask(video, "What?", max_new_tokens=10**7, progress=lambda *s: seen.append(s[0]))
    assert "frames" not in seen


def test_no_tokenizer(video):
    bare = tiny_model()
    bare.tokenizer = None
    with pytest.raises(ValueError, match="model must have a tokenizer"):
        bare.open(video)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunk": 0}, "chunk must be a positive number of tokens, got 0"),
        ({"lead": 3}, "lead must be a text, got 3"),
        ({"progress": 3}, "open: progress must be a function"),
        ({"on_error": "no"}, "on_error must be one of raise, use"),
    ],
)
def test_mistakes(model, video, options, words):
    with pytest.raises(ValueError, match=words):
        model.open(video, **options)
