"""Sampling policies: upstream's rule against an independent computation, and the laws of each."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.goldens import manifest
from timeviper_fast.text.prompt import vision_preface
from timeviper_fast.video import Video
from timeviper_fast.video.sampling import (
    Fps,
    Uniform,
    Upstream,
    VideoChatFlash,
    parse_policy,
    smaller,
)

FLASH = manifest("vcf_sampling")
LAWS = settings(max_examples=30, deadline=None, derandomize=True)


def constant(frames: int, fps: float, start: float = 0.0) -> tuple[torch.Tensor, float, float]:
    return torch.arange(frames, dtype=torch.float64) / fps + start, fps, frames / fps


class Still(Video):
    """A video that only knows its times."""

    def __init__(self, frames: int, fps: float, seconds: torch.Tensor | None = None) -> None:
        own, self.fps, self.duration = constant(frames, fps)
        self.seconds = own if seconds is None else seconds


def upstream_in_numpy(total: int, fps: float, at_most: int = 256, at_least: int = 32) -> list[int]:
    """The rule as published: numpy's round is half to even, numpy's edges are truncated."""
    steps = (np.arange(int(np.ceil(total / fps))) * np.float64(fps)).astype(np.float32)
    chosen = [int(i) for i in np.round(steps) if i < total][:at_most]
    while len(chosen) % 4:
        chosen.append(chosen[-1])
    if len(chosen) < at_least:
        if at_least >= total:
            return list(range(total))
        edges = np.linspace(0, total, at_least + 1).astype(int)
        return [int(a + b) // 2 for a, b in pairwise(edges)]
    return chosen


@LAWS
@given(total=st.integers(1, 20_000), fps=st.sampled_from([1.0, 10, 12.5, 24, 25, 29.97, 30, 59.94]))
def test_upstream_is_the_published_rule(total: int, fps: float) -> None:
    chosen = Upstream().choose(*constant(total, fps))
    assert chosen.tolist() == upstream_in_numpy(total, fps)


def test_upstream_truncates_pads_and_falls_back() -> None:
    # 400 s at 25 fps: the first 256 seconds only
    assert Upstream().choose(*constant(10_000, 25)).tolist() == [25 * i for i in range(256)]
    # 33.2 s: 34 positions, the last one repeated up to 36
    assert Upstream().choose(*constant(830, 25)).tolist()[-4:] == [800, 825, 825, 825]
    # half to even: 12.5 -> 12, 37.5 -> 38
    positions = Upstream(min_frames=1).choose(*constant(100, 12.5)).tolist()
    assert positions == [0, 12, 25, 38, 50, 62, 75, 88]
    # 10 s: 32 centres of 250 frames; a video of 20 frames: all of them
    short = Upstream().choose(*constant(250, 25)).tolist()
    assert len(short) == 32
    assert short[:3] == [3, 11, 19]
    assert Upstream().choose(*constant(20, 25)).tolist() == list(range(20))
    # the minimum is compared after padding: 29 positions become 32 and stay
    assert Upstream().choose(*constant(29 * 25, 25)).tolist()[28:] == [700] * 4


@LAWS
@given(
    gaps=st.lists(st.floats(0.001, 5.0), min_size=1, max_size=200),
    rate=st.floats(0.05, 60),
    limit=st.one_of(st.none(), st.integers(1, 50)),
    start=st.floats(0, 1e5),
)
def test_fps_takes_the_frame_nearest_to_each_instant(
    gaps: list[float], rate: float, limit: int | None, start: float
) -> None:
    seconds = start + torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0)[:-1]
    duration = float(seconds[-1] - start) + gaps[-1]
    chosen = Fps(rate, limit).choose(seconds, len(gaps) / duration, duration)
    assert bool((chosen.diff() > 0).all())
    assert chosen[0] >= 0
    assert chosen[-1] < len(seconds)
    if limit is not None:
        everything = Fps(rate).choose(seconds, 1.0, duration)
        assert len(chosen) == min(limit, len(everything))
        assert set(chosen.tolist()) <= set(everything.tolist())
        return
    # every instant well before the end has its nearest frame among the chosen ones
    elapsed = (seconds - seconds[0]).numpy()
    for instant in np.arange(0, elapsed[-1], 1 / rate)[:500]:
        best = np.abs(elapsed - instant).min()
        assert np.abs(elapsed[chosen.numpy()] - instant).min() <= best + 1e-5 / rate + 1e-6


@LAWS
@given(seconds=st.integers(1, 2000), fps=st.sampled_from([5, 24, 30, 60]), start=st.floats(0, 1e4))
def test_fps_on_a_constant_rate_is_upstream_without_its_limits(
    seconds: int, fps: int, start: float
) -> None:
    frames = seconds * fps
    chosen = Fps(1.0).choose(*constant(frames, fps, start))
    assert chosen.tolist() == list(range(0, frames, fps))


@pytest.mark.parametrize("rate", [Fraction(25, 2), Fraction(2997, 100), Fraction(30000, 1001), 25])
def test_fps_takes_the_earlier_of_two_equally_near_and_upstream_the_even_one(
    rate: Fraction | int,
) -> None:
    total = 9001
    instants = [k * rate for k in range(ceil(total / rate))]
    earlier = [at for x in instants if (at := ceil(x - Fraction(1, 2))) < total]
    even = [at for x in instants if (at := round(x)) < total]
    timeline = constant(total, float(rate))
    assert Fps(1.0).choose(*timeline).tolist() == earlier
    assert Upstream(max_frames=total).choose(*timeline).unique().tolist() == even
    # the two differ only at ties above an odd number, and there by one frame
    parted = [b - a for a, b in zip(earlier, even) if a != b]
    ties = [x for x in instants if x % 1 == Fraction(1, 2) and floor(x) % 2]
    assert parted == [1] * len(ties)
    assert len(ties) == {Fraction(25, 2): 180, Fraction(2997, 100): 1}.get(rate, 0)


def test_fps_spreads_over_the_whole_video_when_there_is_a_maximum() -> None:
    chosen = Fps(1.0, max_frames=4).choose(*constant(100 * 25, 25))
    assert chosen.tolist() == [300, 925, 1550, 2175]


def test_fps_never_repeats_a_frame_and_takes_all_of_a_slow_file() -> None:
    slow = torch.tensor([0.0, 7.0, 8.0, 30.0], dtype=torch.float64)
    assert Fps(1.0).choose(slow, 0.13, 31.0).tolist() == [0, 1, 2, 3]
    # the instants 0, 1, 2 are nearest to 0.0, 0.9 and 2.2
    uneven = torch.tensor([0.0, 0.4, 0.9, 1.6, 2.2], dtype=torch.float64)
    assert Fps(1.0).choose(uneven, 2.0, 2.4).tolist() == [0, 2, 4]


@LAWS
@given(count=st.integers(1, 600), total=st.integers(1, 5000))
def test_uniform_is_even_and_exact_in_count(count: int, total: int) -> None:
    chosen = Uniform(count).choose(*constant(total, 25))
    assert len(chosen) == min(count, total)
    gaps = chosen.diff()
    assert bool((gaps > 0).all())
    assert int(chosen[0]) >= 0
    assert int(chosen[-1]) < total
    if len(gaps) > 1:
        assert int(gaps.max() - gaps.min()) <= 2


@LAWS
@given(total=st.integers(1, 20_000), fps=st.floats(0.2, 60), low=st.integers(1, 64))
def test_videochat_flash_gives_whole_clips(total: int, fps: float, low: int) -> None:
    chosen = VideoChatFlash(4 * low, 512, 4).choose(*constant(total, fps))
    assert len(chosen) % 4 == 0
    assert bool((chosen.diff() >= 0).all())
    assert int(chosen[-1]) < total
    seconds = max(4 * int(total / fps // 4), 4)
    assert len(chosen) == max(min(max(seconds, 4 * low), 512, total // 4 * 4), 4)


def test_videochat_flash_takes_interval_middles() -> None:
    # 10 s -> 8 frames, bound below by 64, of 250: intervals of 3.9 frames, [0, 3), [3, 7), ...
    chosen = VideoChatFlash().choose(*constant(250, 25))
    assert len(chosen) == 64
    assert chosen[:4].tolist() == [1, 4, 8, 12]
    assert VideoChatFlash(4).choose(*constant(250, 25)).tolist()[:2] == [15, 46]
    assert VideoChatFlash(multiple=4).choose(*constant(3, 25)).tolist() == [0, 1, 2, 2]
    assert VideoChatFlash().choose(*constant(3, 25)).tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("row", FLASH["public_chat"], ids=str)
def test_videochat_flash_is_the_rule_of_the_released_models(row: dict[str, Any]) -> None:
    video = Still(row["frames_in_file"], row["fps"])
    start, end = row["start_end"] or (None, None)
    policy = f"videochat-flash:max={row['max_num_frames']}"
    chosen = video.sample(policy, start=start, end=end).tolist()
    if row["max_num_frames"] < 64:
        # upstream takes 64 nevertheless
        assert len(chosen) == row["max_num_frames"] < len(row["indices"])
        return
    filled = -len(row["indices"]) % 4
    assert chosen == row["indices"] + row["indices"][-1:] * filled
    duration = video.span(start, end, policy).duration
    message = vision_preface("qwen_2", duration, len(row["indices"]))
    assert message == row["time_message"]


@pytest.mark.parametrize("row", FLASH["training_variant_clip_of_4"], ids=str)
def test_videochat_flash_has_the_rule_of_training(row: dict[str, Any]) -> None:
    policy = VideoChatFlash(row["lower"], row["upper"], 4)
    timeline = constant(row["frames_in_file"], row["fps"])
    assert policy.choose(*timeline).tolist() == row["indices"]
    assert timeline[2] == row["duration"]


def test_videochat_flash_honours_every_limit_and_fills_the_last_clip() -> None:
    for limit in (1, 3, 4, 30, 70):
        chosen = VideoChatFlash(max_frames=limit).choose(*constant(18_000, 30)).tolist()
        assert len(set(chosen)) == limit
        assert len(chosen) % 4 == 0
        assert set(chosen[limit:]) <= {chosen[limit - 1]}


def test_videochat_flash_goes_by_times_where_frame_numbers_tell_none() -> None:
    """10 s at 10 frames per second, then 10 s at 1: frame 55 of 110 is shown at 5.5 s."""
    slow = [10.0 + i for i in range(10)]
    seconds = torch.tensor([i / 10 for i in range(100)] + slow, dtype=torch.float64)
    video = Still(110, 5.5, seconds)
    assert video.span(12, 16, "videochat-flash") == video.span(12, 16) == (102, 106, 4.0)
    # at a constant rate the first frame is the one shown at the start, as upstream has it
    even = Still(300, 24)
    assert even.span(1.03, 2, "videochat-flash").first == even.span(1.03, 2).first - 1 == 24
    assert even.span(policy="videochat-flash") == even.span() == (0, 300, 12.5)
    assert even.span(5, policy="videochat-flash").duration == pytest.approx(7.4)
    with pytest.raises(ValueError, match="start must lie within the video"):
        even.span(13, policy="videochat-flash")


def test_parse_policy_reads_every_form() -> None:
    assert parse_policy("fps") == Fps(1.0, None)
    assert parse_policy("fps:1") == Fps(1.0)
    assert parse_policy("fps:2:max=256") == Fps(2.0, 256)
    assert parse_policy("fps:max=8") == Fps(1.0, 8)
    assert parse_policy("uniform:32") == Uniform(32)
    assert parse_policy("upstream") == Upstream(1.0, 256, 32)
    assert parse_policy("upstream:fps=2:max=64:min=8") == Upstream(2.0, 64, 8)
    assert parse_policy("videochat-flash") == VideoChatFlash(64, 512)
    assert parse_policy("videochat-flash:max=128") == VideoChatFlash(64, 128)
    assert parse_policy("videochat-flash:max=8") == VideoChatFlash(8, 8, 8)
    assert parse_policy("videochat-flash:multiple=4") == VideoChatFlash(64, 512, 4)
    assert parse_policy(Uniform(3)) == Uniform(3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("every:2", "policy must be one of fps:RATE.*videochat-flash, got 'every:2'"),
        ("", "policy must be one of .*got ''"),
        ("fps:fast", "policy 'fps:fast': fps must be a number, got 'fast'"),
        ("fps:0", "policy 'fps:0': fps must be a finite number above 0, got 0.0"),
        ("fps:nan", "policy 'fps:nan': fps must be a finite number above 0, got nan"),
        ("fps:inf", "policy 'fps:inf': fps must be a finite number above 0, got inf"),
        ("fps:1:max=0", "policy 'fps:1:max=0': max must be an integer of 1 or more, got 0"),
        ("fps:1:max=ten", "policy 'fps:1:max=ten': max must be a whole number, got 'ten'"),
        ("fps:1:most=3", "option must be one of max=VALUE, got 'most=3'"),
        ("fps:1:3", "option must be one of max=VALUE, got '3'"),
        ("uniform", "must have the form uniform:N .*, got 'uniform'"),
        ("uniform:1.5", "frames must be a whole number, got '1.5'"),
        ("uniform:0", "policy 'uniform:0': frames must be an integer of 1 or more, got 0"),
        (
            "upstream:fps=-1",
            "policy 'upstream:fps=-1': fps must be a finite number above 0, got -1.0",
        ),
        ("upstream:max=0", "policy 'upstream:max=0': max must be an integer of 1 or more, got 0"),
        ("upstream:min=0", "policy 'upstream:min=0': min must be an integer of 1 or more, got 0"),
        (
            "videochat-flash:min=0",
            "policy 'videochat-flash:min=0': min must be an integer of 1 or more, got 0",
        ),
        (
            "videochat-flash:max=0",
            "policy 'videochat-flash:max=0': max must be an integer of 1 or more, got 0",
        ),
        (
            "upstream:max=2:min=8",
            r"policy 'upstream:max=2:min=8': min must be at most max \(2\), got 8",
        ),
        ("upstream:max=8", r"policy 'upstream:max=8': min must be at most max \(8\), got 32"),
        (
            "videochat-flash:multiple=6",
            "'videochat-flash:multiple=6': multiple must be 4 or 8, got 6",
        ),
        (Fps, "policy must be a string as 'fps:1', or an object that can choose, got <class"),
        (
            "videochat-flash:max=8:min=16",
            r"policy 'videochat-flash:max=8:min=16': min must be at most max \(8\), got 16",
        ),
    ],
)
def test_parse_policy_names_rule_and_value(text: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_policy(text)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Uniform("3"), "Uniform: frames must be an integer of 1 or more, got '3'"),
        (lambda: Uniform(2.5), "Uniform: frames must be an integer of 1 or more, got 2.5"),
        (lambda: Uniform(None), "Uniform: frames must be an integer of 1 or more, got None"),
        (lambda: Fps(max_frames=True), "Fps: max must be an integer of 1 or more, got True"),
        (lambda: Upstream(max_frames=2.5), "Upstream: max must be an integer of 1 .*, got 2.5"),
        (lambda: VideoChatFlash("8"), "VideoChatFlash: min must be an integer .*, got '8'"),
        (lambda: Fps("1"), "Fps: fps must be a finite number above 0, got '1'"),
        (lambda: Upstream(None), "Upstream: fps must be a finite number above 0, got None"),
    ],
)
def test_a_policy_is_made_of_numbers(build: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("fps", [1e6, 1e300])
def test_upstream_makes_no_more_positions_than_it_keeps(fps: float) -> None:
    """An hour of video at a million frames per second would be 14 GB of positions."""
    chosen = Upstream(fps, max_frames=8, min_frames=4).choose(*constant(108_000, 30))
    assert chosen.tolist() == [0] * 8


@pytest.mark.parametrize(
    ("frames", "rate", "duration", "positions"),
    [
        # the recorded frames of the 12B: 76 of them at 29.97 per second, 6 chosen
        (76, 2.4, 76 / 29.97, [0, 15, 30, 45, 60, 75]),
        # 9 * k / 3, truncated
        (10, 2, 2.4, [0, 3, 6, 9]),
        (8, 1, 3.9, [0, 3, 7]),
        (5, 100, 5.0, [0, 1, 2, 3, 4]),
        (5, 1, 0.2, [0]),
        (1, 2, 30.0, [0]),
    ],
)
def test_linspace_truncates(frames, rate, duration, positions):
    policy = parse_policy(f"linspace:fps={rate}")
    seconds = torch.arange(frames, dtype=torch.float64)
    assert policy.choose(seconds, 30.0, duration).tolist() == positions


def test_linspace_is_numpys_up_to_its_limit():
    for frames in (200, 1001, 7919):
        seconds = torch.arange(frames, dtype=torch.float64)
        got = parse_policy("linspace:max=128").choose(seconds, 30.0, frames / 30)
        n = min(128, int(frames / 30 * 2))
        assert got.tolist() == np.linspace(0, frames - 1, n, dtype=int).tolist()
    assert smaller("linspace", 32) == "linspace:fps=2:max=32"
    with pytest.raises(ValueError, match="'linspace:max=0': max must be an integer of 1 or more"):
        parse_policy("linspace:max=0")
    with pytest.raises(ValueError, match="option must be one of fps=VALUE, max=VALUE"):
        parse_policy("linspace:min=3")
