"""The process's side of the server: where it listens, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from functools import partial

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from timeviper_fast.errors import ArgumentError
from timeviper_fast.serve.app import Server, make_app

__all__ = ["Listener", "expect_free"]

# connections beyond those that may ask: health, metrics, and refusals
_SPARE = 64
# for clients to take their responses at the end
_LAST_SECONDS = 5
# for the head of a request
_HEAD_SECONDS = 10.0


def expect_free(host: str, port: int) -> None:
    """Raise an ArgumentError if nothing can listen there, before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # as the server itself: connections that have just ended do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or str(error)
            rule = f"be free to listen at {host} ({reason})"
            raise ArgumentError("", "port", rule, port, "give another --port") from None


class _Timely(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Closes a connection on which no whole head of a request comes in time.

    Uvicorn bounds connections, and waits for their heads for ever: some half heads would keep
    everybody out.
    """

    def __init__(self, *args: object, head_seconds: float, **options: object) -> None:
        super().__init__(*args, **options)
        self._head_seconds = head_seconds
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        """Start the clock, unless a request is being answered: then stop it."""
        if self._answers and self._end is not None:
            self._end.cancel()
            self._end = None
        elif not self._answers and self._end is None:
            self._end = self.loop.call_later(self._head_seconds, self._too_slow)

    @property
    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _too_slow(self) -> None:
        self._end = None
        if not self._answers and not self.transport.is_closing():
            self.transport.close()


class Listener(uvicorn.Server):
    """Serves HTTP until SIGINT or SIGTERM; `run` begins.

    At the end no connection is accepted any more, and whatever waits or is answered fails with 503.

    Args:
        host, port: where it listens; port 0 is one that is free.
        log_level: of uvicorn; "info" tells the address and a line for each request.
    """

    def __init__(self, server: Server, host: str, port: int, log_level: str = "info") -> None:
        config = uvicorn.Config(
            make_app(server),
            host=host,
            port=port,
            log_level=log_level,
            # uvicorn calls it as it would call a class
            http=partial(_Timely, head_seconds=min(_HEAD_SECONDS, server.body_seconds)),  # type: ignore[arg-type]
            server_header=False,
            limit_concurrency=server.places.most + _SPARE,
            timeout_graceful_shutdown=_LAST_SECONDS,
        )
        super().__init__(config)
        self._workers = server.workers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the workers first: uvicorn waits for responses that would take long otherwise."""
        await asyncio.gather(*(asyncio.to_thread(worker.close) for worker in self._workers))
        await super().shutdown(sockets)
