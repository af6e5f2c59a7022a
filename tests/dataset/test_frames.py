"""A sample's frames: their number obeys the rule, the limits, whole clips and the video's part."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timeviper_fast.dataset.frames import Sampling
from timeviper_fast.dataset.media import Timeline
from timeviper_fast.dataset.sample import Limits
from timeviper_fast.errors import ArgumentError
from timeviper_fast.video.sampling import VideoChatFlash


def timeline(frames: int, fps: float = 2.0) -> Timeline:
    return Timeline(torch.arange(frames, dtype=torch.float64) / fps, fps, frames / fps)


@pytest.mark.parametrize(
    ("sampling", "frames", "limits", "positions"),
    [
        # 10 seconds at 2 frames per second: one frame from the middle of each second
        (Sampling(), 20, Limits(1, 64), [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]),
        (Sampling("fps:0.5"), 20, Limits(1, 64), [2, 6, 10, 14, 18]),
        (Sampling(), 20, Limits(1, 4), [2, 7, 12, 17]),
        (Sampling("fps:0.1"), 20, Limits(5, 64), [2, 6, 10, 14, 18]),
        (Sampling("fps:9"), 3, Limits(1, 64), [0, 1, 2]),
        (Sampling("uniform"), 20, Limits(1, 2), [5, 15]),
        (Sampling("uniform"), 2, Limits(1, 8), [0, 1]),
        # whole clips: 10 seconds give 8 frames, a maximum of 7 gives 4, 3 frames fill one clip
        (Sampling(clip_frames=4), 20, Limits(1, 64), [1, 3, 6, 8, 11, 13, 16, 18]),
        (Sampling("uniform", clip_frames=4), 20, Limits(1, 7), [2, 7, 12, 17]),
        (Sampling(clip_frames=4), 3, Limits(1, 64), [0, 1, 2, 2]),
        (Sampling("fps:0.1", clip_frames=4), 20, Limits(5, 64), [1, 3, 6, 8, 11, 13, 16, 18]),
    ],
)  # fmt: skip
def test_frames_of_a_rule(
    sampling: Sampling, frames: int, limits: Limits, positions: list[int]
) -> None:
    chosen = sampling.choose(timeline(frames), None, None, limits)
    assert chosen.positions.tolist() == positions
    assert chosen.seconds.tolist() == [position / 2 for position in positions]
    assert (chosen.start, chosen.duration) == (0.0, frames / 2)


def test_a_sentence_tells_the_frames_that_are_not_repeated() -> None:
    assert Sampling(clip_frames=4).choose(timeline(3), None, None, Limits()).sampled == 3
    assert Sampling("videochat-flash").choose(timeline(3), None, None, Limits()).sampled == 4


def test_a_part_of_the_video() -> None:
    late = timeline(20)._replace(seconds=timeline(20).seconds + 5)
    chosen = Sampling().choose(late, 7.0, 11.0, Limits())
    assert chosen.seconds.tolist() == [7.5, 8.5, 9.5, 10.5]
    assert chosen.positions.tolist() == [5, 7, 9, 11]
    assert (chosen.start, chosen.duration) == (7.0, 4.0)
    # no frame starts at 7.2 seconds; the next one starts at 7.5
    chosen = Sampling().choose(late, 7.2, 11.0, Limits())
    assert (chosen.start, chosen.duration) == (7.5, 3.5)
    assert Sampling().choose(late, None, None, Limits()).start == 5.0
    with pytest.raises(ArgumentError, match="start must lie within the video"):
        Sampling().choose(late, 20.0, None, Limits())


def test_a_duration_that_misses_a_whole_number_by_rounding() -> None:
    almost = timeline(6)._replace(duration=2.9999999999999996)
    assert len(Sampling().choose(almost, None, None, Limits()).positions) == 3


def test_the_rule_of_videochat_flash() -> None:
    long = timeline(400)
    chosen = Sampling("videochat-flash").choose(long, None, None, Limits(64, 512))
    expected = VideoChatFlash(64, 512, 4).choose(long.seconds, 2.0, 200.0)
    assert chosen.positions.tolist() == expected.tolist()
    assert len(chosen.positions) == 200


@given(
    st.sampled_from(["fps:1", "fps:3", "uniform"]), st.integers(1, 5), st.integers(1, 90),
    st.integers(1, 40), st.integers(0, 40), st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_whole_clips_within_limits(
    rule: str, clip: int, frames: int, least: int, more: int, jitter: bool, seed: int
) -> None:
    limits, sampling = Limits(least, max(least + more, clip)), Sampling(rule, jitter, clip)
    chosen = sampling.choose(timeline(frames), None, None, limits, seed)
    positions, count = chosen.positions.tolist(), len(chosen.positions)
    assert count % clip == 0
    assert count <= limits.max_frames
    assert count >= min(least, limits.max_frames // clip * clip, frames // clip * clip)
    assert chosen.sampled == len(set(positions)) or frames < clip
    assert all(early <= late for early, late in pairwise(positions))
    assert 0 <= positions[0] <= positions[-1] < frames
    assert count == len(sampling.choose(timeline(frames), None, None, limits, seed + 1).positions)


def test_jitter_takes_every_place_of_its_interval() -> None:
    seen = [
        tuple(
            Sampling("uniform", True)
            .choose(timeline(20), None, None, Limits(1, 4), seed)
            .positions.tolist()
        )
        for seed in range(200)
    ]
    assert [{each[i] for each in seen} for i in range(4)] == [
        set(range(5 * i, 5 * i + 5)) for i in range(4)
    ]
    again = Sampling("uniform", True).choose(timeline(20), None, None, Limits(1, 4), 7)
    assert tuple(again.positions.tolist()) == seen[7]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (("fps",), "rule must be one of fps:RATE, uniform, videochat-flash, got 'fps'"),
        (("fps:0",), "rule must be one of"),
        (("fps:nan",), "rule must be one of"),
        ((3,), "rule must be one of"),
        (("uniform", 1), "jitter must be True or False, got 1"),
        (("uniform", True, 0), "clip_frames must be an integer above 0, got 0"),
        (("videochat-flash", True), "jitter must be False for rule='videochat-flash'"),
        (
            ("videochat-flash", False, 3),
            "clip_frames must divide 4 for rule='videochat-flash', got 3",
        ),
    ],
)
def test_rules_that_are_broken(fields: tuple[object, ...], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=f"Sampling: {sentence}"):
        Sampling(*fields)  # type: ignore[arg-type]


def test_limits_below_a_clip() -> None:
    with pytest.raises(
        ArgumentError, match=r"max_frames must allow a whole clip \(4 frames\), got 3"
    ):
        Sampling(clip_frames=4).bounds(Limits(1, 3))
    assert Sampling(clip_frames=4).bounds(Limits(5, 15)) == (8, 12)
    assert Sampling("videochat-flash").bounds(Limits(1, 512)) == (4, 512)
