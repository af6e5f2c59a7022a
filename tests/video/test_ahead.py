"""A background thread advances an iterator, and ends with its user."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from threading import Event, Thread

import pytest
import torch

from timeviper_fast.video import Video, open_video
from timeviper_fast.video.ahead import read_ahead

LIMIT = 10.0


def threads() -> list[Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


class Source:
    """The numbers from 0 on, and how many of them were made; it breaks at `fault`."""

    def __init__(self, count: int, fault: int | None = None) -> None:
        self.count, self.fault, self.made, self.closed = count, fault, 0, Event()
        self.waits = threading.Semaphore(0)

    def __call__(self, ended: Event) -> Iterator[int]:
        try:
            for number in range(self.count):
                if number == self.fault:
                    raise OSError("the disk is gone")
                self.made += 1
                self.waits.release()
                yield number
        finally:
            self.closed.set()


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_the_items_in_their_order(depth):
    source = Source(50)
    assert list(read_ahead(source, depth)) == list(range(50))
    assert source.closed.is_set()
    assert not threads()


def test_at_most_depth_items_wait():
    source = Source(50)
    items = read_ahead(source, 3)
    assert (source.made, threads()) == (0, [])
    assert next(items) == 0
    # one was handed over, three wait, and one is held by the thread
    for _ in range(5):
        assert source.waits.acquire(timeout=LIMIT)
    assert not source.waits.acquire(timeout=0.05)
    assert list(items) == list(range(1, 50))


def test_an_error_comes_behind_the_items_before_it_and_is_itself():
    items = read_ahead(Source(9, fault=4), 2)
    assert [next(items) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    assert not threads()
    assert list(items) == []
    # also one that is no Exception, and one on the way to the iterator
    for error in (KeyboardInterrupt(), ValueError("no such file")):

        def fails(ended: Event, error: BaseException = error) -> Iterator[int]:
            raise error

        with pytest.raises(type(error)) as caught:
            next(read_ahead(fails, 1))
        assert caught.value is error


@pytest.mark.parametrize("depth", [1, 4])
def test_the_thread_ends_when_its_user_goes(depth):
    for leave in ("close", "forget", "raise"):
        source = Source(10**9)
        items = read_ahead(source, depth)
        next(items)
        if leave == "close":
            items.close()  # type: ignore[attr-defined]
        elif leave == "forget":
            del items
            gc.collect()
        else:
            with pytest.raises(ZeroDivisionError):
                [1 // 0 for _ in items]
            del items
            gc.collect()
        assert source.closed.wait(LIMIT)
        assert not threads()


def test_the_event_tells_a_slow_iterator_that_nobody_waits():
    looked = []

    def slow(ended: Event) -> Iterator[int]:
        yield 0
        looked.append(ended.wait(LIMIT))
        yield 1

    items = read_ahead(slow, 1)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert looked == [True]
    assert not threads()


def test_a_video_decodes_ahead():
    rgb = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 4, 6, 3)
    with open_video(rgb) as video:
        found = list(video.frames(range(12), 5, ahead=2))
        assert torch.equal(torch.cat([frames.rgb for frames in found]), rgb)
        assert [len(frames.seconds) for frames in found] == [5, 5, 2]
        next(video.frames(range(12), 1, ahead=2))
    assert not threads()
    with pytest.raises(ValueError, match="ahead must be an integer of 0 or more, got -1"):
        video.frames([0], ahead=-1)


def test_a_video_that_is_forgotten_ends_its_thread():
    def forget() -> weakref.ref[Video]:
        video = open_video(torch.zeros(90, 4, 6, 3, dtype=torch.uint8))
        next(video.frames(range(90), 1, ahead=2))
        return weakref.ref(video)

    video = forget()
    gc.collect()
    assert video() is None
    assert not threads()
