"""The demo's video and questions, and how many of them the embedded model answers rightly.

The bars hold for the weights in timeviper_fast/embedded/tiny.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from tests.cli.common import without_pyav
from timeviper_fast import TimeViper
from timeviper_fast.demo import DemoVideo, write_demo_video
from timeviper_fast.errors import VideoError
from timeviper_fast.video import read_video


@cache
def model() -> TimeViper:
    return TimeViper.from_pretrained("timeviper-fast/tiny")


def right(demo: DemoVideo, video, questions=()) -> dict[str, bool]:
    """Whether the answer to the question of each task is the true one; all are asked by default."""
    return {
        question.task: model().ask(video, question.text, max_new_tokens=16).text == question.answer
        for question in questions or demo.questions
    }


def test_another_seed_is_another_video():
    first, second = DemoVideo(0, 32), DemoVideo(1, 32)
    assert [question.task for question in first.questions] == ["sign", "colour", "chain"]
    assert first.questions == DemoVideo(0, 32).questions != second.questions
    frames = first.frames()
    assert frames.shape == (32, 48, 48, 3)
    assert np.array_equal(frames, DemoVideo(0, 32).frames())
    assert (frames != second.frames()).any(axis=(1, 2, 3)).all()


def test_every_question_can_be_answered():
    for seed in range(50):
        demo = DemoVideo(seed)
        assert all(question.needed for question in demo.questions)


def test_the_model_sees_in_the_file_what_was_drawn(tmp_path):
    """Compressed and resized, a frame differs from the drawn one by noise, not by what it shows."""
    demo, told = DemoVideo(3, 33), []
    path = demo.write(tmp_path / "new" / "demo.mp4", lambda done, total: told.append((done, total)))
    assert told == [(i, 33) for i in range(1, 34)]
    shown = read_video(path)
    assert tuple(shown.rgb.shape) == (33, 240, 240, 3)
    assert shown.seconds.tolist() == list(range(33))
    small = shown.rgb.numpy().reshape(33, 48, 5, 48, 5, 3).mean((2, 4))
    error = np.abs(small - demo.frames()).mean((1, 2, 3))
    assert error.max() < 6


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 0.5}, {"seed": 2**63}, {"seed": True}])
def test_a_seed_that_cannot_be(wrong):
    with pytest.raises(
        ValueError, match=r"^DemoVideo: seed must be an integer from 0 to 2\^63 - 1"
    ):
        DemoVideo(**wrong)


@pytest.mark.parametrize("seconds", [31, 40.0, "64"])
def test_a_length_that_cannot_be(seconds):
    with pytest.raises(ValueError, match=r"^DemoVideo: seconds must be an integer of 32 or more"):
        DemoVideo(seconds=seconds)


def test_a_file_needs_pyav(monkeypatch, tmp_path):
    without_pyav(monkeypatch)
    with pytest.raises(VideoError, match="av"):
        DemoVideo(0, 32).write(tmp_path / "demo.mp4")
    assert list(tmp_path.iterdir()) == []


def test_answers_about_sixty_four_frames():
    """Twenty videos: the sign of each, the colour in one half of them, the chain in the other."""
    counts = Counter()
    for seed in range(20):
        demo = DemoVideo(seed)
        sign, colour, chain = demo.questions
        counts.update(right(demo, demo.frames(), (sign, chain if seed % 2 else colour)))
    assert counts["sign"] == 20
    assert counts["colour"] >= 9
    assert counts["chain"] >= 9


def test_answers_about_a_thousand_frames():
    """One question of each task, each about a video of its own."""
    counts = Counter()
    for seed in range(3):
        demo = DemoVideo(seed, 1000)
        counts.update(right(demo, demo.frames(), (demo.questions[seed],)))
    assert sum(counts.values()) == 3


def test_answers_survive_the_file(tmp_path):
    """H.264, and a resize from 240 pixels to 48, cost no answer that the drawn frames give."""
    lost = 0
    for seed in range(200, 202):
        demo = DemoVideo(seed)
        drawn = right(demo, demo.frames())
        filmed = right(demo, demo.write(tmp_path / f"{seed}.mp4"))
        lost += sum(drawn[task] and not filmed[task] for task in drawn)
    assert lost == 0


def test_a_moving_square_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r"write_demo_video: .* got 0 s, 24 fps, 360 x 640"):
        write_demo_video(tmp_path / "square.mp4", seconds=0)
