"""`timeviper-fast demo --page`: the embedded model answers questions in a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timeviper_fast.cli.interrupt import importing
from timeviper_fast.cli.serve import LOCAL_NAMES
from timeviper_fast.embedded.models import TINY
from timeviper_fast.inference.request import Opening

__all__ = ["serve_page"]

_HOST = "127.0.0.1"
# requests at a time, seconds of each, bytes of a video that is sent and of those that were read
_PLACES, _SECONDS, _UPLOAD, _KEPT = 16, 600.0, 64 * 10**6, 10**9


def serve_page(media_root: str, port: int, examples: Mapping[str, Sequence[str]]) -> None:
    """Serve the page to this machine until it is stopped; the address is printed.

    Args:
        media_root: the folder of the videos that the page lists.
        port: 0 is one that is free.
        examples: questions that the page proposes, by the name of their video.

    Raises:
        ArgumentError: there is no such folder, or the port is taken.
    """
    with importing():
        from timeviper_fast.cli.terminal import err, say
        from timeviper_fast.serve.app import Server
        from timeviper_fast.serve.listen import Listener, expect_free
        from timeviper_fast.serve.media import MediaRoot
        from timeviper_fast.serve.page import Page
        from timeviper_fast.serve.protocol import Defaults
        from timeviper_fast.serve.worker import Places, Worker
        from timeviper_fast.timeviper import TimeViper

    class Told(Listener):
        """Prints the address once it is open."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            number = self.servers[0].sockets[0].getsockname()[1]
            say(err, f"The page is at http://{_HOST}:{number}/ until you press Ctrl+C.")

    media = MediaRoot(media_root, _UPLOAD)
    expect_free(_HOST, port)
    server = Server(
        [Worker(TimeViper.from_pretrained(TINY), _KEPT)],
        media,
        Defaults(TINY, Opening()),
        Places(_PLACES),
        _SECONDS,
        hosts=LOCAL_NAMES,
        # the model has learnt from single questions
        page=Page(examples, remember=False),
    )
    Told(server, _HOST, port, "warning").run()
