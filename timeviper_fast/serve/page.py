"""The page: static files, and what they ask of the server beside the chat completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from timeviper_fast.errors import TEXT, Kind, is_integer, is_number
from timeviper_fast.serve.film import film_of, frames_of
from timeviper_fast.serve.library import list_videos
from timeviper_fast.serve.media import Media, MediaRoot
from timeviper_fast.serve.protocol import Defaults, Fields, read_object
from timeviper_fast.serve.worker import Places, Worker
from timeviper_fast.video.bound import bounded

__all__ = ["PAGE_FILES", "Page", "PageRoutes"]

# path: (file, content type)
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/client.js": ("client.js", "text/javascript"),
    "/page/timeline.js": ("timeline.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
# The browser runs and loads what comes from this server alone. Pictures come as data URLs.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
# videos that are opened at a time for the page, beside those that are asked about
_AT_ONCE = 4
# of a request for frames
_SECONDS = Kind(
    "be 1 to 24 numbers below 1e9",
    lambda v: (
        isinstance(v, list)
        and 1 <= len(v) <= 24
        and all(is_number(second) and abs(second) < 1e9 for second in v)
    ),
)
# pixels of the longer side of each
_SIDE = Kind("be pixels, 16 to 960", lambda v: is_integer(v) and 16 <= v <= 960)

# the body of a request, and when reading it is given up
Read = Callable[[Request, float], Awaitable[bytes]]


@dataclass(frozen=True)
class Page:
    """What the page says beside what the server knows.

    Attributes:
        examples: questions that it proposes, by the name of their video.
        remember: whether questions are sent with what was said before, unless people choose.
    """

    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remember: bool = True


class PageRoutes:
    """The routes of the page.

    Args:
        page: what it says.
        media, defaults, seconds: of the server: the videos, the model's name and how it reads
            them, and the time limit.
        worker: whose model's plan is shown, and whose bound holds for pictures.
        needs_key: whether requests need the server's key, which the page then asks for.
        read: reads the body of a request.
    """

    def __init__(
        self,
        page: Page,
        media: MediaRoot,
        defaults: Defaults,
        seconds: float,
        worker: Worker,
        *,
        needs_key: bool,
        read: Read,
    ) -> None:
        self.media, self.opening, self.seconds = media, defaults.opening, seconds
        self.model, self.pixels = worker.model, worker.most_pixels
        self.read, self._places = read, Places(_AT_ONCE)
        self._told = {
            "model": defaults.name,
            "note": worker.model.note,
            "upload_bytes": media.most_bytes,
            "examples": {name: list(asked) for name, asked in page.examples.items()},
            "remember": page.remember,
        }
        folder = files("timeviper_fast.serve") / "static"
        self._files = {path: (folder / file).read_bytes() for path, (file, _) in PAGE_FILES.items()}
        if needs_key:
            self._files["/"] = self._files["/"].replace(b'data-key=""', b'data-key="needed"')

    def mount(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        for path in PAGE_FILES:
            app.add_api_route(path, partial(self.file, path))
        app.add_api_route("/page/start", self.start)
        app.add_api_route("/page/film", self.film, methods=["POST"])
        app.add_api_route("/page/frames", self.frames, methods=["POST"])

    async def file(self, path: str) -> Response:
        """A file of the page."""
        return Response(self._files[path], headers=_HEADERS, media_type=PAGE_FILES[path][1])

    async def start(self) -> JSONResponse:
        """What the page needs first: the model, the limit of a video that is sent, the videos."""
        library = await asyncio.to_thread(list_videos, self.media.root)
        return JSONResponse({**self._told, **asdict(library)})

    async def film(self, request: Request) -> JSONResponse:
        """Facts of a video and its plan."""

        def made(asked: Fields, media: Media, ends: float) -> dict[str, Any]:
            asked.end()
            return film_of(media, self.opening, self.model, ends)

        return await self._about(request, made)

    async def frames(self, request: Request) -> JSONResponse:
        """Frames of a video as pictures."""

        def made(asked: Fields, media: Media, ends: float) -> dict[str, Any]:
            seconds, side = asked.need("seconds", _SECONDS), asked.take("side", _SIDE, 320)
            asked.end()
            return {"frames": frames_of(media, seconds, side, self.opening, ends)}

        return await self._about(request, made)

    async def _about(
        self, request: Request, make: Callable[[Fields, Media, float], dict[str, Any]]
    ) -> JSONResponse:
        """The answer to a request about a video.

        Its place is taken before the body is read, and is free when the work has ended: a thread
        cannot be cancelled, and goes on for a client that leaves.
        """
        ends = time.monotonic() + self.seconds
        give_back = self._places.take()

        async def answered() -> dict[str, Any]:
            return await asyncio.to_thread(self._made, await self.read(request, ends), ends, make)

        task = asyncio.create_task(answered())
        task.add_done_callback(lambda _: give_back())
        return JSONResponse(await asyncio.shield(task))

    def _made(
        self, body: bytes, ends: float, make: Callable[[Fields, Media, float], dict[str, Any]]
    ) -> dict[str, Any]:
        asked = Fields(read_object(body))
        media = self.media.find(asked.need("url", TEXT))
        try:
            with bounded(self.pixels):
                return make(asked, media, ends)
        except Exception as error:
            raise media.fault(error) from error
