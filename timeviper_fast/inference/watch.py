"""Watch a video that goes on: push its frames as they come, answer questions between pushes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, NamedTuple

from timeviper_fast.video import Frames

__all__ = ["End", "Inbox", "Reply", "Watcher"]

# seconds; a source that sleeps in a device's driver is not waited for any longer
_PATIENCE = 1.0


class End(NamedTuple):
    """There is nothing more of "frames" or "questions"; `error` is what ended them, if any did."""

    of: str
    error: Exception | None = None


class Reply(NamedTuple):
    """An answer, and how far the stream was.

    Attributes:
        question: as it was asked.
        answer: what `ask` returned; None where it raised.
        error: what it raised.
        frames: frames that were pushed before.
        second: when the last one of them is shown; None before the first.
        waiting: frames that came meanwhile, and wait.
        dropped: frames that gave way so far.
    """

    question: str
    answer: Any
    error: Exception | None
    frames: int
    second: float | None
    waiting: int
    dropped: int


class Inbox:
    """Frames and questions in the order in which they came, from threads.

    At most `room` batches of frames wait. When one more comes, its thread waits (a file or a
    directory is read later, so nothing is lost) or, with `drops`, the oldest that waits gives way:
    a camera goes on whether or not it is read.

    Attributes:
        waiting: frames that wait.
        dropped: frames that gave way.
    """

    def __init__(self, room: int, *, drops: bool) -> None:
        self._room, self._drops = room, drops
        self._items: deque[Frames | str | End] = deque()
        self._changed = Condition()
        self._is_closed = False
        self.waiting = self.dropped = 0

    def put(self, item: Frames | str | End) -> bool:
        """Take an item, of frames when there is room; False if nobody wants any more."""
        with self._changed:
            if isinstance(item, Frames):
                self._make_room()
                self.waiting += 1
            self._items.append(item)
            self._changed.notify_all()
            return not self._is_closed

    def _make_room(self) -> None:
        if self._drops and self.waiting >= self._room:
            oldest = next(i for i, item in enumerate(self._items) if isinstance(item, Frames))
            del self._items[oldest]
            self.waiting -= 1
            self.dropped += 1
        self._changed.wait_for(lambda: self.waiting < self._room or self._is_closed)

    def next(self) -> Frames | str | End:
        """The next item, which is waited for."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items))
            item = self._items.popleft()
            if isinstance(item, Frames):
                self.waiting -= 1
                self._changed.notify_all()
            return item

    def close(self) -> None:
        """Nobody wants anything any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


@dataclass
class Watcher:
    """Pushes frames and answers questions, each in its turn.

    A question is answered on the frames that came before it; one that comes before the first frame
    waits for it. Meanwhile frames go on being collected: `Inbox` says what happens when they are
    more than there is room for.

    Args:
        stream: gives the frames, and can be closed.
        push: takes frames; what it raises ends the watching.
        ask: answers a question; what it raises becomes `Reply.error`.
        room: frames that may wait.
        drops: whether the oldest waiting frame gives way to one more; else the stream waits.
        at_end: questions wait until the stream has ended.
        on_end: called when the stream has ended, with the error that ended it, or None.

    Attributes:
        frames: frames that were pushed.
        second: when the last one is shown.
    """

    stream: Any
    push: Callable[[Frames], object]
    ask: Callable[[str], Any]
    room: int = 64
    drops: bool = False
    at_end: bool = False
    on_end: Callable[[Exception | None], object] | None = None

    def __post_init__(self) -> None:
        self.inbox = Inbox(self.room, drops=self.drops)
        self.frames = 0
        self.second: float | None = None

    def replies(self, questions: Iterable[str]) -> Generator[Reply, None, None]:
        """Answers as they are given, until the questions end (with `at_end`, the stream, too).

        Closing this, or an error, ends the stream and its thread. The thread that reads questions
        may sleep in its reading for ever. It is a daemon.

        Raises:
            Exception: what ended the stream, behind the last answer; what ended the questions.
        """
        sources = {"frames": self.stream, "questions": questions}
        threads = [
            Thread(target=self._collect, args=source, name=f"watch-{source[0]}", daemon=True)
            for source in sources.items()
        ]
        for thread in threads:
            thread.start()
        try:
            fault = yield from self._answered()
        finally:
            self.inbox.close()
            self.stream.close()
            threads[0].join(_PATIENCE)
        if fault is not None:
            raise fault

    def _collect(self, of: str, items: Iterable[Frames] | Iterable[str]) -> None:
        """A thread: put the items into the inbox, then their end."""
        error = None
        try:
            for item in items:
                if not self.inbox.put(item):
                    return
        except Exception as raised:
            error = raised
        self.inbox.put(End(of, error))

    def _answered(self) -> Generator[Reply, None, Exception | None]:
        """The answers; returns what ended the stream."""
        held: deque[str] = deque()
        ended: dict[str, Exception | None] = {}
        while True:
            may_ask = "frames" in ended or (self.frames > 0 and not self.at_end)
            while held and may_ask:
                yield self._reply(held.popleft())
            if "questions" in ended and not held and (may_ask or not self.at_end):
                return ended["questions"] or ended.get("frames")
            item = self.inbox.next()
            if isinstance(item, End):
                ended[item.of] = item.error
                if item.of == "frames" and self.on_end is not None:
                    self.on_end(item.error)
            elif isinstance(item, str):
                held.append(item)
            else:
                self.push(item)
                self.frames += len(item.seconds)
                self.second = float(item.seconds[-1])

    def _reply(self, question: str) -> Reply:
        answer, error = None, None
        try:
            answer = self.ask(question)
        except Exception as raised:
            error = raised
        at = (self.frames, self.second, self.inbox.waiting, self.inbox.dropped)
        return Reply(question, answer, error, *at)
