"""The types that sources and the trainer share; each broken rule raises one error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from timeviper_fast.dataset.sample import Cost, Draw, Limits, Sample
from timeviper_fast.errors import ArgumentError

TALK = ({"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."})
PIXELS, FEATURES = torch.zeros(2, 3, 4, 4), torch.zeros(3, 5, 8)


def test_a_sample_counts_its_frames() -> None:
    assert (Sample(TALK).frames, Sample(TALK).vision) == (0, None)
    assert Sample(TALK, PIXELS).frames == 2
    assert Sample(TALK, PIXELS).vision is PIXELS
    assert Sample(TALK, features=FEATURES.bfloat16()).frames == 3
    assert Sample(TALK, PIXELS, needed=(0, 1), seconds=(0.0, 1.0), preface="Two. ").needed == (0, 1)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ({"messages": ()}, "question must not be empty or blank, got no messages"),
        ({"messages": TALK[:1]}, "messages must end with an answer, got none to learn from"),
        ({"messages": TALK[1:]}, "messages must take turns, user first, .*'assistant' as turn 0"),
        ({"features": FEATURES}, "features must be None beside pixels, got both"),
        ({"pixels": PIXELS.double()}, r"pixels must be .* float32 .*, got torch.float64 \(2, 3, 4"),
        ({"pixels": PIXELS[:, :1]}, r"pixels must be \(frames, 3, S, S\)"),
        ({"pixels": PIXELS[..., :3]}, r"pixels must be \(frames, 3, S, S\)"),
        ({"pixels": PIXELS[:0]}, "pixels must be .* with at least one frame"),
        ({"pixels": [1]}, r"pixels must be .*, got \[1\]"),
        ({"pixels": None, "features": FEATURES[0]}, r"features must be \(frames, n, vision_size\)"),
        ({"pixels": None, "features": FEATURES.long()}, "features must be .* of floats"),
        ({"pixels": None, "preface": "x"}, "preface must be left out without pixels or features"),
        ({"pixels": None, "placeholder": "<image>"}, "placeholder must be left out without pixels"),
        ({"needed": (2,)}, r"needed must be ascending numbers of its 2 frames, got \(2,\)"),
        ({"needed": (1, 0)}, r"needed must be ascending"),
        ({"needed": (0.5,)}, r"needed must be ascending"),
        ({"seconds": (0.0,)}, r"seconds must be empty or one time for each of its 2 frames"),
        ({"parts": (("a", 1),)}, r"parts must have 2 frames together"),
        ({"seconds": (0.0, float("nan"))}, r"seconds must be empty or one time"),
    ],
)
def test_a_sample_that_breaks_a_rule(broken: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        Sample(**{"messages": TALK, "pixels": PIXELS, **broken})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((0,), "min_frames must be an integer above 0, got 0"),
        ((4, 3), r"max_frames must be an integer of min_frames \(4\) or more, got 3"),
        ((1, 2, 0), "image_size must be an integer above 0 or None, got 0"),
        ((1, 2, -3), "image_size must be an integer above 0 or None, got -3"),
    ],
)
def test_limits_that_break_a_rule(values: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=f"Limits: {sentence}"):
        Limits(*values)


def test_a_draw_counts_from_zero() -> None:
    assert Cost(*(4, 7)).text == 7
    with pytest.raises(ArgumentError, match="Draw: index must be an integer of 0 or more, got -1"):
        Draw(0, -1, 5)
