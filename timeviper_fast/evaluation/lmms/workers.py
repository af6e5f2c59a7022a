"""One device in this process, or several with a process for each.

Each process owns a model and answers whole groups, so that decoding on one device does not wait
for the interpreter that another one holds, and a process that dies costs its own group alone.
"""

from __future__ import annotations

import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from timeviper_fast.errors import ArgumentError
from timeviper_fast.evaluation.lmms.asker import Asker, Load, Numbered
from timeviper_fast.evaluation.lmms.query import OWNER
from timeviper_fast.evaluation.lmms.told import Said

__all__ = ["Answerer", "Here", "Workers", "answerer"]

Group = Sequence[Numbered]


class Answerer(Protocol):
    """What answers groups of queries, on however many devices.

    Attributes:
        settings: what answers depend on, as plain data.
    """

    settings: dict[str, Any]

    def answers(self, groups: Sequence[Group]) -> Iterator[tuple[int, Said]]:
        """Each query's place with what it got, in any order. Queries of a group share a video."""

    def close(self) -> None:
        """Give memory and processes back."""


def answerer(load: Load, devices: Sequence[str | None]) -> Answerer:
    """The models on their devices; a single one is in this process."""
    return Here(load.asker(devices[0])) if len(devices) == 1 else Workers(load, devices)


class Here:
    """One model in this process."""

    def __init__(self, asker: Asker) -> None:
        self._asker: Asker | None = asker
        self.settings = asker.settings

    def answers(self, groups: Sequence[Group]) -> Iterator[tuple[int, Said]]:
        assert self._asker is not None
        for group in groups:
            yield from self._asker.answers(group)

    def close(self) -> None:
        self._asker = None


class Workers:
    """A process for each device.

    Args:
        load: how each loads its model.
        devices: two or more; a device named twice has two models.

    Raises:
        ArgumentError: a model cannot be loaded.
    """

    def __init__(self, load: Load, devices: Sequence[str | None]) -> None:
        self._workers = [_Worker(load, device) for device in devices]
        try:
            # all load at the same time
            settings = [worker.ready() for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.settings = settings[0]

    def answers(self, groups: Sequence[Group]) -> Iterator[tuple[int, Said]]:
        left, busy = deque(groups), dict[Connection, _Worker]()
        try:
            while left or busy:
                for worker in self._workers:
                    if left and worker.pipe not in busy:
                        worker.ask(left.popleft())
                        busy[worker.pipe] = worker
                for pipe in wait(list(busy)):
                    assert isinstance(pipe, Connection)
                    yield from busy[pipe].heard()
                    if not busy[pipe].asked:
                        del busy[pipe]
        finally:
            # a run that was interrupted: nobody waits for these answers
            for worker in busy.values():
                worker.close()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class _Worker:
    """A process and what it has been asked.

    Attributes:
        pipe: to the process.
        asked: the places of the queries that wait for an answer.
    """

    def __init__(self, load: Load, device: str | None) -> None:
        self._load, self._device = load, device
        self.asked: set[int] = set()
        self._start()

    def _start(self) -> None:
        # a forked process could not use CUDA
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self._load, self._device)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> dict[str, Any]:
        """Wait until the model is loaded; returns its settings."""
        message = self._received()
        if message is None:
            raise RuntimeError(f"{OWNER}: {self._death()} while it loaded the model")
        assert isinstance(message, dict)
        return message

    def ask(self, group: Group) -> None:
        """Send a group; a process that has ended is started again."""
        if not self._process.is_alive():
            self.close()
            self._start()
            self.ready()
        self.asked = {place for place, _ in group}
        # if it ends at this moment, `heard` tells
        with suppress(BrokenPipeError):
            self.pipe.send(list(group))

    def heard(self) -> Iterator[tuple[int, Said]]:
        """The next answer; if the process has died, an error for each query that waits."""
        message = self._received()
        if message is None:
            error = self._death()
            yield from ((place, Said(error=error)) for place in self.asked)
            self.asked = set()
            return
        place, said = message
        self.asked.remove(place)
        yield place, said

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()
        self.pipe.close()

    def _received(self) -> Any:
        """The next message; None if the process has died.

        Raises:
            ArgumentError, RuntimeError: the process met an error that is no answer.
        """
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionError):
            return None
        if isinstance(message, BaseException):
            raise message
        return message

    def _death(self) -> str:
        self._process.join()
        return f"the process of {self._device} ended with exit code {self._process.exitcode}"


def _serve(pipe: Connection, load: Load, device: str | None) -> None:
    """Load a model, and answer groups until the other end closes."""
    # the parent is told, and ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        asker = load.asker(device)
        pipe.send(asker.settings)
        while True:
            for answer in asker.answers(pipe.recv()):
                pipe.send(answer)
    except (EOFError, BrokenPipeError):
        return
    except ArgumentError as error:
        pipe.send(error)
    except Exception:
        pipe.send(RuntimeError(f"{OWNER}: the process of {device}:\n{traceback.format_exc()}"))
