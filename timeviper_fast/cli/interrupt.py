"""Ctrl-C while libraries are imported: no work has started, so leave at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["importing", "leave"]


@contextmanager
def importing() -> Iterator[None]:
    """Exit at once on Ctrl-C within the block, where a library would report an import failure.

    A parent process may have set SIGINT to be ignored: it is left so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(*_: object) -> NoReturn:
    """Say that the command was interrupted and exit without cleanup."""
    os.write(2, b"timeviper-fast: interrupted\n")
    os._exit(130)
