"""Read ahead: a background thread advances an iterator, a bounded number of items at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from contextvars import copy_context
from functools import partial
from queue import Queue
from threading import Event, Thread, current_thread
from typing import Any, TypeVar

__all__ = ["read_ahead"]

T = TypeVar("T")


def read_ahead(items: Callable[[Event], Iterator[T]], depth: int) -> Iterator[T]:
    """The items of an iterator that a background thread advances.

    The thread starts with the first item that is asked for. It ends with the last item, with an
    error, and when the returned generator is closed, garbage-collected or left by an exception
    (Ctrl-C too); closing waits for it. The thread closes the iterator itself, so files that the
    iterator opened are closed then.

    Args:
        items: makes the iterator (one with `close`, such as a generator) in the thread. The event
            that it is given tells that nobody wants more: an iterator whose items take long looks
            at it in between.
        depth: at most so many finished items wait; the thread waits when there are more.

    Raises:
        whatever the iterator raises, behind the items before it.
    """
    ended = Event()
    queue: Queue[tuple[list[T], BaseException | None]] = Queue(depth)
    # a context of its own, so that bounds on videos hold in the thread, too
    work = partial(copy_context().run, _work, items, queue, ended)
    thread = Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            found, error = queue.get()
            if error is not None:
                raise error
            if not found:
                return
            # popped, so that the item is not kept while the next one is waited for
            yield found.pop()
    finally:
        ended.set()
        # makes room for an item that the thread waits to deliver; it delivers no second one
        with queue.mutex:
            queue.queue.clear()
            queue.not_full.notify()
        # the garbage collector may close this generator in the thread itself
        if thread is not current_thread():
            thread.join()


def _work(items: Callable[[Event], Iterator[Any]], queue: Queue[Any], ended: Event) -> None:
    """The thread: deliver each item in a list, then an empty list, or the error."""
    error: BaseException | None = None
    try:
        reading: Any = items(ended)
        with closing(reading):
            for item in reading:
                if ended.is_set():
                    return
                queue.put(([item], None))
                # not kept while the next one is made
                del item
    except BaseException as raised:
        error = raised
    if not ended.is_set():
        queue.put(([], error))
