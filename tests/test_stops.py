"""The watch adds up the time of a stop, lists stops in order, and survives an interruption."""

from __future__ import annotations

import time

import pytest
import torch

from timeviper_fast.stops import STOPS, StopWatch


def watch() -> StopWatch:
    return StopWatch(torch.device("cpu"))


def test_every_stop_is_listed_in_order_also_if_it_was_not_entered():
    assert [stop.name for stop in watch().rows()] == list(STOPS)


def test_times_of_a_stop_add_up_and_stops_do_not_mix():
    watched = watch()
    for _ in range(2):
        with watched.at("decode"):
            time.sleep(0.01)
    assert watched.stops["decode"].milliseconds >= 20
    assert watched.stops["decode"].peak_bytes > 0
    assert watched.stops["vision"].milliseconds == 0


def test_a_stage_stands_behind_prefill():
    watched = watch()
    with watched.at("prefill: uniform stage before layer 7") as stop:
        stop.shape = "1 x 2"
    names = [stop.name for stop in watched.rows()]
    at = names.index("prefill: uniform stage before layer 7")
    assert names[at - 1 : at + 2 : 2] == ["prefill", "generate"]


def test_time_counts_when_the_block_raises():
    watched = watch()
    with pytest.raises(KeyboardInterrupt), watched.at("generate"):
        raise KeyboardInterrupt
    assert watched.stops["generate"].milliseconds > 0
