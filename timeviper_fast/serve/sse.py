"""An answer that is sent while it is made, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from timeviper_fast.serve.faults import Fault
from timeviper_fast.serve.protocol import Reply
from timeviper_fast.serve.worker import Job

__all__ = ["Pieces", "event", "events"]


class Pieces:
    """Pieces of an answer on their way from the worker's thread to the event loop.

    Together they are the answer's text, which has no blanks at its ends.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        # blanks that are sent if more text follows; None before the first piece
        self._blanks: str | None = None

    def put(self, piece: str | None) -> None:
        """Add a piece, from the worker's thread; None is the end, from any thread."""
        if piece is not None:
            text = piece.lstrip() if self._blanks is None else self._blanks + piece
            piece = text.rstrip()
            if not piece:
                self._blanks = text or self._blanks
                return
            self._blanks = text[len(piece) :]
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)
        except RuntimeError:
            # the server has ended, and its loop with it
            return

    async def get(self) -> str | None:
        """The next piece, once it is there."""
        return await self._queue.get()


def event(data: dict[str, Any]) -> str:
    """One event."""
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n"


async def events(job: Job, reply: Reply, first: str | None, pieces: Pieces) -> AsyncIterator[str]:
    """The events of an answer, from its first piece on.

    A fault behind the first piece is an event, as the status was sent long before.
    """
    yield event(reply.piece(role="assistant", content=""))
    piece = first
    while piece is not None:
        yield event(reply.piece(content=piece))
        piece = await pieces.get()
    try:
        answered = job.done.result(timeout=0)
    except Fault as fault:
        yield event(fault.body)
        return
    yield event(reply.last(answered))
    if reply.asked.usage:
        yield event(reply.usage(answered))
    yield "data: [DONE]\n\n"
