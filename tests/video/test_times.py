"""Times as mm:ss, and the frames between two of them."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.errors import ArgumentError
from timeviper_fast.video import open_video
from timeviper_fast.video.times import clock, frames_between, parse_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90.0), (0, 0.0), (2.5, 2.5), ("90", 90.0), ("90.25", 90.25), (".5", 0.5), ("7.", 7.0),
        ("1:30", 90.0), ("01:30.5", 90.5), ("90:00", 5400.0), (" 0:05 ", 5.0),
        ("1:02:03", 3723.0), ("10:00:00.125", 36000.125),
    ],
)  # fmt: skip
def test_a_time_is_read(text, seconds):
    assert parse_time("start", text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "soon", "-1", -1, "1:60", "1:60:00", "1:2:3:4", "1:", ":5", "1e3", "nan", "inf", "٣",
     float("nan"), float("inf"), True, None, [1]],
)  # fmt: skip
def test_what_is_no_time(text):
    with pytest.raises(
        ArgumentError, match=r"^start must be a time of 0 or more, as seconds, mm:ss"
    ):
        parse_time("start", text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "00:00"), (5, "00:05"), (59.994, "00:59.99"), (59.996, "01:00"), (754.5, "12:34.50"),
        (3599, "59:59"), (3600, "01:00:00"), (36000.25, "10:00:00.25"), (-2.5, "-00:02.50"),
    ],
)  # fmt: skip
def test_a_time_is_written(seconds, text):
    assert clock(seconds) == text
    if seconds >= 0:
        assert abs(parse_time("end", text) - seconds) <= 0.005


# four frames a second of a film that begins at 1.5 s and is shown for 2 s
SECONDS = torch.arange(8, dtype=torch.float64) / 4 + 1.5


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        (None, None, (0, 8, 2.0)),
        (0, None, (0, 8, 2.0)),
        (2, None, (2, 8, 1.5)),
        (2, 3, (2, 6, 1.0)),
        # the start's frame is in, the end's is not
        ("0:01.75", "0:02", (1, 2, 0.25)),
        (1.8, 2.3, (2, 4, pytest.approx(0.3))),
        # a player shows 3.5 s as 0:04
        (3, "0:04", (6, 8, 0.5)),
    ],
)
def test_the_frames_between_two_times(start, end, span):
    assert frames_between(SECONDS, 2.0, start, end) == span


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        (3.5, None, r"start must lie within the video \(00:01.50 to 00:03.50\), got 00:03.50"),
        (None, 1.5, r"end must lie within the video \(00:01.50 to 00:03.50\), got 00:01.50"),
        (None, 4.5, r"end must lie within the video \(00:01.50 to 00:03.50\), got 00:04.50"),
        (3, 2, r"end must lie after the start \(00:03\), got 00:02"),
        (2.1, 2.2, r"start must have a frame between .* 00:02, 00:02.25\), got 00:02.10 to 00:02.20"),
        (3.4, None, r"start must have a frame between .* 00:03.25\), got 00:03.40 to 00:03.50"),
    ],
)  # fmt: skip
def test_times_outside_the_video(start, end, words):
    with pytest.raises(ArgumentError, match=f"^{words}$"):
        frames_between(SECONDS, 2.0, start, end)


@pytest.mark.parametrize(
    ("policy", "positions"),
    [("fps:1", [6, 8, 10]), ("fps:2", [6, 7, 8, 9, 10, 11]), ("uniform:2", [7, 10])],
)
def test_a_policy_chooses_among_them_only(policy, positions):
    """Two frames a second; what is chosen is what the cut film alone would give."""
    frames = torch.zeros(20, 4, 4, 3, dtype=torch.uint8)
    with open_video(frames, fps=2) as video:
        assert video.sample(policy, start=3, end=6).tolist() == positions
    with open_video(frames[6:12], fps=2) as cut:
        assert (cut.sample(policy) + 6).tolist() == positions
