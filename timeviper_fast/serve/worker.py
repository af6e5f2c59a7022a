"""One model in its own thread, and the questions that wait for it, video by video."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Condition, Lock, Thread
from time import monotonic
from typing import Literal

from timeviper_fast.inference.answer import Answer
from timeviper_fast.inference.request import Opening, Question
from timeviper_fast.inference.session import Session
from timeviper_fast.serve.faults import Fault
from timeviper_fast.serve.media import Media
from timeviper_fast.serve.sessions import Key, Sessions
from timeviper_fast.stops import Stop
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video.bound import bounded
from tvkernels import use_backend

__all__ = ["BATCH", "MOST_PIXELS", "Answered", "Job", "Places", "Worker"]

_log = logging.getLogger(__name__)
# questions about one video before the next video's turn
BATCH = 8
# of a picture: 8K
MOST_PIXELS = 7680 * 4320


@dataclass(frozen=True)
class Answered:
    """An answer, and what the response says beside it.

    Attributes:
        answer: the model's.
        prompt_tokens: of the video and all text.
        duration: seconds of the video, or of its part.
        held: whether the video had been read before.
        opened: time and size of the stops on the way to the session; see `Session.stops`.
    """

    answer: Answer
    prompt_tokens: int
    duration: float
    held: bool
    opened: tuple[Stop, ...] = ()


@dataclass(eq=False)
class Job:
    """A question about a video, which waits for its answer.

    Attributes:
        media, opening: the video, and how it is read.
        question: with its options.
        on_text: gets pieces of the answer while it is made, in the worker's thread.
        begun: whether it has got one.
        done: becomes the answer or a Fault. Once it is done, the worker stops working on it: who
            leaves or has waited too long sets it.
    """

    media: Media
    opening: Opening
    question: Question
    on_text: Callable[[str], None] | None = None
    begun: bool = False
    done: Future[Answered] = field(default_factory=Future)

    @property
    def key(self) -> Key:
        return self.media.digest, self.opening

    def tell(self, piece: str) -> None:
        """Hand on a piece of the answer, unless it has ended."""
        assert self.on_text is not None
        if not self.done.done():
            self.begun = True
            self.on_text(piece)

    def fail(self, fault: Fault) -> None:
        """End it, unless it has ended."""
        try:
            self.done.set_exception(fault)
        except InvalidStateError:
            return

    def succeed(self, answered: Answered) -> None:
        """End it, unless it has ended."""
        try:
            self.done.set_result(answered)
        except InvalidStateError:
            return


class _Left(Exception):
    """Nobody waits any more for what is being computed."""


class Places:
    """A bounded number of requests at a time, those that wait and those that are answered."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0
        # seconds of a request, a running mean
        self._seconds = 1.0
        self._lock = Lock()

    def take(self) -> Callable[[], None]:
        """Take a place; the function that gives it back, once however often it is called.

        Raises:
            Fault: all are taken. It says when one may be free.
        """
        with self._lock:
            if self.taken >= self.most:
                retry = min(60, max(1, round(self._seconds)))
                message = f"{self.taken} requests wait already; try again in {retry} s"
                raise Fault(429, message, code="queue_full", retry=retry)
            self.taken += 1
        since = [monotonic()]

        def give_back() -> None:
            with self._lock:
                if since:
                    self._seconds += 0.1 * (monotonic() - since.pop() - self._seconds)
                    self.taken -= 1

        return give_back


class Worker:
    """Answers questions with one model, in one thread.

    Videos take turns. A turn answers the questions that wait for its video, up to eight: those with
    the same options together.

    Args:
        model: a `TimeViper` with a tokenizer.
        session_bytes: of all sessions that are kept.
        backend: of the ops; None chooses by device.
        most_pixels: of a picture of a video.
    """

    def __init__(
        self,
        model: TimeViper,
        session_bytes: int,
        backend: Literal["reference", "triton"] | None = None,
        most_pixels: int = MOST_PIXELS,
    ) -> None:
        self.most_pixels = most_pixels
        self.model, self.sessions, self._backend = model, Sessions(session_bytes), backend
        self.counts: Counter[str] = Counter()
        self._turns: OrderedDict[Key, deque[Job]] = OrderedDict()
        self._changed, self._closed = Condition(), False
        self._current: list[Job] = []
        self._thread = Thread(target=self._work, name="timeviper-worker", daemon=True)

    @property
    def waiting(self) -> int:
        """Questions that nobody works on yet."""
        with self._changed:
            return sum(map(len, self._turns.values()))

    @property
    def alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a question; one that comes after the end fails at once."""
        with self._changed:
            if not self._closed:
                self._turns.setdefault(job.key, deque()).append(job)
                self._changed.notify()
                return
        job.fail(_closing())

    def close(self, seconds: float = 10.0) -> None:
        """End: whatever waits fails, and what is computed stops at its next step.

        Args:
            seconds: how long that step is waited for; the process may end without it.
        """
        with self._changed:
            self._closed = True
            left = [job for jobs in self._turns.values() for job in jobs] + self._current
            self._turns.clear()
            self._changed.notify()
        for job in left:
            job.fail(_closing())
        if self.alive:
            self._thread.join(seconds)

    def _work(self) -> None:
        with use_backend(self._backend) if self._backend else nullcontext():
            while (key := self._next()) is not None:
                try:
                    self._turn(key)
                except Exception as error:
                    # a defect here must not end the thread, which nobody would replace
                    for job in [*self._current, *self._take(key, None)]:
                        job.fail(self._fault(error, job))

    def _next(self) -> Key | None:
        """The video whose turn it is, once there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns or self._closed)
            return None if self._closed else next(iter(self._turns))

    def _take(self, key: Key, most: int | None) -> list[Job]:
        """The first questions about a video; if more are left, its next turn is the last one."""
        with self._changed:
            waiting = self._turns.pop(key, deque())
            count = len(waiting) if most is None else min(most, len(waiting))
            taken = [waiting.popleft() for _ in range(count)]
            if waiting:
                self._turns[key] = waiting
            self._current = taken
            return taken

    def _wanted(self, key: Key) -> Job | None:
        """A question about the video that somebody waits for; all others leave the queue."""
        with self._changed:
            waiting = self._turns.get(key, deque())
            jobs = deque(job for job in waiting if not job.done.done())
            self.counts["left"] += len(waiting) - len(jobs)
            if jobs:
                self._turns[key] = jobs
                return jobs[0]
            self._turns.pop(key, None)
            return None

    def _turn(self, key: Key) -> None:
        first, held = self._wanted(key), True
        if first is None:
            return
        try:
            session = self.sessions.get(key)
            if session is None:
                held, session = False, self._opened(first)
        except _Left:
            return
        except Exception as error:
            fault = self._fault(error, first)
            for job in self._take(key, None):
                job.fail(fault)
            return
        for jobs in _together(self._take(key, BATCH)):
            self._answer(session, jobs, held)
        # they may hold videos
        self._current = []

    def _opened(self, job: Job) -> Session:
        """Read a video, as long as somebody waits for it."""

        def progress(*_: object) -> None:
            if self._wanted(job.key) is None:
                raise _Left

        media = job.media
        with bounded(self.most_pixels):
            session = self.model.open(media.source, **vars(job.opening), progress=progress)
        media.check_unchanged()
        # on a GPU, its memory is for the video whose turn it is
        session.to("cpu")
        self.sessions.put(job.key, session)
        self.counts["videos"] += 1
        return session

    def _answer(self, session: Session, jobs: list[Job], held: bool) -> None:
        """Answer questions together; if one does not fit, each alone.

        One whose first words were sent is not answered again.
        """
        jobs = [job for job in jobs if not job.done.done()]
        if not jobs:
            return
        try:
            answers = self._asked(session, jobs)
        except _Left:
            self.counts["left"] += len(jobs)
            return
        except Exception as error:
            for job in jobs:
                if len(jobs) == 1 or job.begun:
                    job.fail(self._fault(error, job))
                else:
                    self._answer(session, [job], held)
            return
        left = sum(job.done.done() for job in jobs)
        self.counts["batches"] += 1
        self.counts["left"] += left
        self.counts["answers"] += len(answers) - left
        self.counts["tokens"] += sum(len(answer.token_ids) for answer in answers)
        for job, answer in zip(jobs, answers):
            tokens = session.ended.segment.length + len(session.prompt(job.question).after)
            job.succeed(Answered(answer, tokens, session.footage.duration, held, session.stops))

    def _asked(self, session: Session, jobs: list[Job]) -> list[Answer]:
        """Answers, unless everybody leaves: that is seen at each token."""

        def progress(*_: object) -> None:
            if all(job.done.done() for job in jobs):
                raise _Left

        asked = jobs[0].question
        answers: list[Answer] = session.ask(
            [job.question.question for job in jobs],
            max_new_tokens=asked.max_new_tokens,
            sampling=asked.sampling,
            answer_prefix=asked.answer_prefix,
            think=asked.think,
            on_text=[None if job.on_text is None else job.tell for job in jobs],
            progress=progress,
        )
        return answers

    def _fault(self, error: Exception, job: Job) -> Fault:
        fault = job.media.fault(error)
        if fault.status >= 500:
            _log.error("a question failed", exc_info=error)
        self.counts["faults"] += 1
        return fault


def _together(jobs: list[Job]) -> Iterator[list[Job]]:
    """Questions with the same options, in the order of the first."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        asked = job.question
        same = (asked.max_new_tokens, asked.sampling, asked.answer_prefix, asked.think)
        groups.setdefault(same, []).append(job)
    yield from groups.values()


def _closing() -> Fault:
    return Fault(503, "the server is going down", code="closing")
