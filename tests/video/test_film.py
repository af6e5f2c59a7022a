"""A film is decoded as it comes; what is lost or out of order is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.video.common import damage, number_of, pictures
from timeviper_fast.video import open_video, write_video
from timeviper_fast.video.container import opened
from timeviper_fast.video.film import Shown, Tally, film, in_order

BLACK = np.zeros((2, 2, 3), np.uint8)


def times(seconds: list[float]) -> tuple[list[float], Tally]:
    tally = Tally()
    shown = in_order((Shown(second, lambda: BLACK) for second in seconds), tally)
    return [one.second for one in shown], tally


def test_times_that_ascend_stay_as_they_are():
    seconds = [0.1, 0.2, 0.30000000000000004, 7.0, 7.04]
    found, tally = times(seconds)
    assert found == seconds
    assert tally.sentences() == ()


def test_a_frame_that_is_not_later_is_left_out():
    found, tally = times([5.0, 5.04, 5.04, 4.9, 5.08])
    assert found == [5.0, 5.04, 5.08]
    assert tally.sentences() == ("2 frames left out: not later than the frame before",)


def test_a_clock_that_starts_anew_follows_its_past():
    found, tally = times([100.0, 100.5, 0.0, 0.5, 1.25, 0.0])
    assert found == pytest.approx([100.0, 100.5, 101.0, 101.5, 102.25, 103.0])
    words = "the time stamps start anew in 2 places; each part follows the one before"
    assert tally.sentences() == (words,)


def decoded(path: Path) -> tuple[list[int], list[float], Tally]:
    tally = Tally()
    with opened(path) as (container, stream):
        shown = list(film(container, stream, tally))
    found = [number_of(torch.from_numpy(one.rgb().copy())) for one in shown]
    return found, [one.second for one in shown], tally


def test_the_last_frame_is_shown_for_its_duration(tmp_path):
    path = tmp_path / "a.mkv"
    write_video(path, pictures(30), 25, options={"bf": "3"})
    found, seconds, tally = decoded(path)
    assert found == list(range(30))
    with open_video(path) as video:
        assert seconds == video.seconds.tolist()
        assert tally.last == pytest.approx(video.duration - seconds[-1])


def test_damage_reaches_to_the_next_key_frame(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, pictures(36), 25, options={"bf": "0", "g": "12"})
    broken = damage(path, tmp_path / "broken.mp4", 15)
    found, _, tally = decoded(broken)
    with open_video(broken, on_error="use") as video:
        truth = [number_of(rgb) for b in video.frames(range(36)) for rgb in b.rgb]
    assert found == truth == [*range(15), *range(24, 36)]
    assert tally.lost == 9
    assert tally.sentences()[0].startswith("9 frames lost: damaged or not decodable")


def test_few_faults_are_kept():
    tally = Tally()
    for number in range(1000):
        tally.lose(f"fault {number}")
    assert (tally.lost, len(tally.faults)) == (1000, 3)
    assert tally.sentences() == ("1000 frames lost: damaged or not decodable (fault 0)",)
