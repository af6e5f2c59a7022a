"""Frames are chosen as they come, exactly as for the whole video."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timeviper_fast.video.pace import Pace, online_policy
from timeviper_fast.video.sampling import Fps


def chosen(seconds: list[float], fps: float, last: float) -> list[int]:
    pace: Pace[int] = Pace(fps)
    found = [at for i, second in enumerate(seconds) for at in pace.push(i, second)]
    return found + pace.end(last)


@given(
    st.lists(st.floats(0.001, 3.0), min_size=0, max_size=60),
    st.sampled_from([0.2, 0.5, 1.0, 2.0, 7.3, 30.0]),
    st.sampled_from([0.0, 0.04, 1.0, 9.0]),
    st.sampled_from([0.0, 1.4, 1e5]),
)
def test_the_choice_is_that_of_the_whole_video(steps, fps, last, start):
    seconds = [start]
    for step in steps:
        seconds.append(seconds[-1] + step)
    duration = seconds[-1] - seconds[0] + last
    whole = Fps(fps).choose(torch.tensor(seconds, dtype=torch.float64), 25.0, duration)
    assert chosen(seconds, fps, last) == whole.tolist()


def test_a_frame_is_chosen_when_the_next_one_comes():
    pace: Pace[str] = Pace(1)
    assert pace.push("a", 10.0) == []
    assert pace.push("b", 10.4) == ["a"]
    # 10.4 to 10.8: no whole second lies between the middles 10.2 and 10.6
    assert pace.push("c", 10.8) == []
    # the second 11 lies between the middles 10.6 and 11.1
    assert pace.push("d", 11.4) == ["c"]
    assert pace.end(0.4) == []
    assert Pace(1).end(1.0) == []


@pytest.mark.parametrize(
    "policy", ["fps:1:max=64", "uniform:8", "upstream", "videochat-flash", "fps:2:max=1"]
)
def test_policies_that_need_the_end_are_refused(policy):
    words = "policy must be fps:RATE for a stream, because .* over the whole video, whose end"
    with pytest.raises(ValueError, match=words):
        online_policy(policy)
    assert online_policy("fps:0.5") == Fps(0.5)
