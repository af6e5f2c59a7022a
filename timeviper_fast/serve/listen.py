"""The process's side of the server: where it listens, and how it ends."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from timeviper_fast.serve.app import Server, make_app

__all__ = ["Listener"]

# connections beyond those that may ask: health, metrics, and refusals
_SPARE = 64
# for clients to take their responses at the end
_LAST_SECONDS = 5


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
