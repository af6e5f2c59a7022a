"""Frames are pushed as they come, and questions are answered between pushes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from timeviper_fast.inference.watch import End, Inbox, Reply, Watcher
from timeviper_fast.video import Frames

LIMIT = 10


def frame(second: float) -> Frames:
    return Frames(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.tensor([second]).double())


class Source:
    """Frames 0, 1, 2, ... as often as the test lets one through."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count, self.error = count, error
        self.gate = threading.Semaphore(0)
        self.is_closed = threading.Event()

    def __iter__(self) -> Iterator[Frames]:
        for second in range(self.count):
            assert self.gate.acquire(timeout=LIMIT)
            if self.is_closed.is_set():
                return
            yield frame(second)
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.is_closed.set()
        self.gate.release()


def watched(source: Source, questions: Any, **options: Any) -> tuple[list[Reply], list[float]]:
    """The replies; an answer is the seconds that were pushed before its question."""
    seen: list[float] = []
    watcher = Watcher(
        source,
        lambda frames: seen.extend(frames.seconds.tolist()),
        lambda question: f"{question} {seen}",
        **options,
    )
    return list(watcher.replies(questions)), seen


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def wait_for(condition) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_question_is_answered_on_the_frames_before_it():
    source, seen = Source(5), []

    def questions() -> Iterator[str]:
        # this one waits for the first frame
        yield "a"
        source.gate.release()
        wait_for(lambda: seen == [0])
        for count, question in ((2, "b"), (2, "c")):
            before = len(seen)
            for _ in range(count):
                source.gate.release()
            wait_for(lambda: len(seen) == before + count)  # noqa: B023
            yield question

    watcher = Watcher(source, lambda f: seen.extend(f.seconds.tolist()), lambda q: (q, [*seen]))
    replies = list(watcher.replies(questions()))
    assert [reply.answer for reply in replies] == [
        ("a", [0]),
        ("b", [0, 1, 2]),
        ("c", [0, 1, 2, 3, 4]),
    ]
    assert [(reply.frames, reply.second) for reply in replies] == [(1, 0), (3, 2), (5, 4)]
    assert source.is_closed.is_set()
    assert not threads("watch-frames")
    wait_for(lambda: not threads("watch-questions"))


def test_frames_are_collected_while_a_question_is_answered():
    source = Source(4)
    source.gate.release()
    watcher: Watcher

    def ask(question: str) -> None:
        for _ in range(3):
            source.gate.release()
        wait_for(lambda: watcher.inbox.waiting == 3)

    watcher = Watcher(source, lambda frames: None, ask)
    [reply] = watcher.replies(["a"])
    assert (reply.error, reply.frames, reply.waiting, reply.dropped) == (None, 1, 3, 0)


def test_questions_at_the_end():
    source = Source(4)
    source.gate.release(4)
    replies, _ = watched(source, ["a", "b"], at_end=True)
    everything = [0.0, 1.0, 2.0, 3.0]
    assert [reply.answer for reply in replies] == [f"a {everything}", f"b {everything}"]


def test_what_a_question_raises_does_not_end_the_watching():
    source = Source(1)
    source.gate.release()

    def ask(question: str) -> str:
        if question == "bad":
            raise ValueError("too long")
        return question

    replies = list(Watcher(source, lambda frames: None, ask).replies(["bad", "good"]))
    assert [reply.answer for reply in replies] == [None, "good"]
    assert isinstance(replies[0].error, ValueError)


def test_what_ends_the_stream_is_told_at_once_and_raised_at_last():
    error, told = OSError("vanished"), []
    source = Source(2, error)
    source.gate.release(2)

    def questions() -> Iterator[str]:
        wait_for(lambda: told)
        yield "a"

    seen: list[float] = []
    watcher = Watcher(
        source, lambda f: seen.extend(f.seconds.tolist()), lambda q: [*seen], on_end=told.append
    )
    replies = watcher.replies(questions())
    assert next(replies).answer == [0, 1]
    assert told == [error]
    with pytest.raises(OSError, match="vanished"):
        next(replies)


def test_what_pushing_raises_ends_everything():
    source = Source(9)
    source.gate.release(9)

    def push(frames: Frames) -> None:
        raise KeyboardInterrupt

    asking = threading.Event()
    questions = iter(lambda: asking.wait(LIMIT) and "", "")
    with pytest.raises(KeyboardInterrupt):
        list(Watcher(source, push, str).replies(questions))
    assert source.is_closed.is_set()
    assert not threads("watch-frames")
    asking.set()
    wait_for(lambda: not threads("watch-questions"))


def test_a_camera_drops_the_oldest_frames_and_a_file_waits():
    camera = Inbox(3, drops=True)
    for second in range(5):
        assert camera.put(frame(second))
        camera.put(f"asked at {second}")
    assert (camera.waiting, camera.dropped) == (3, 2)
    left = [camera.next() for _ in range(8)]
    # the questions stay where they were
    asked = [item for item in left if isinstance(item, str)]
    assert asked == [f"asked at {second}" for second in range(5)]
    assert left[:2] == asked[:2]
    assert [float(item.seconds) for item in left if isinstance(item, Frames)] == [2, 3, 4]

    file = Inbox(2, drops=False)
    thread = threading.Thread(target=lambda: [file.put(frame(second)) for second in range(4)])
    thread.start()
    wait_for(lambda: file.waiting == 2)
    thread.join(0.05)
    assert thread.is_alive()
    assert file.waiting == 2
    assert [float(file.next().seconds) for _ in range(4)] == [0, 1, 2, 3]
    thread.join(LIMIT)
    assert (file.waiting, file.dropped) == (0, 0)


def test_a_closed_inbox_lets_its_threads_go():
    inbox, put = Inbox(1, drops=False), []
    thread = threading.Thread(target=lambda: put.extend(inbox.put(frame(i)) for i in range(2)))
    thread.start()
    wait_for(lambda: inbox.waiting == 1 and put)
    inbox.close()
    thread.join(LIMIT)
    assert put == [True, False]
    assert inbox.put(End("frames")) is False
