"""The HTTP application: chat completions, models, health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from timeviper_fast.serve.faults import Fault, fault_of, invalid, too_long
from timeviper_fast.serve.media import MediaRoot
from timeviper_fast.serve.metrics import metrics_text
from timeviper_fast.serve.page import PAGE_FILES, Page, PageRoutes
from timeviper_fast.serve.protocol import Defaults, Reply, read_request
from timeviper_fast.serve.sse import Pieces, events
from timeviper_fast.serve.worker import Answered, Job, Places, Worker

__all__ = ["Server", "make_app"]

# an ASGI application's arguments
_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

_log = logging.getLogger(__name__)
# paths that need no key
_OPEN = {"/health", *PAGE_FILES}
# of a body, beside the video's base64
_WORDS = 1 << 20


@dataclass(frozen=True)
class Server:
    """What the application serves.

    Attributes:
        workers: one for each device, all with the same model.
        media: the folder of videos.
        defaults: the model's name, and what holds where a request says nothing.
        places: how many requests there may be at a time.
        seconds: the longest time from a request's first byte to its answer's last.
        key: what clients must send; "" lets everybody in.
        body_seconds: the longest time in which a request's body comes.
        hosts: names of this host that requests may use, so that a web page whose own name leads
            here cannot ask; empty for all.
        page: for people with a browser; None serves none.
    """

    workers: Sequence[Worker]
    media: MediaRoot
    defaults: Defaults
    places: Places
    seconds: float
    key: str = ""
    hosts: frozenset[str] = frozenset()
    body_seconds: float = 60.0
    page: Page | None = None

    @property
    def most_bytes(self) -> int:
        """Of a body."""
        return self.media.most_bytes // 3 * 4 + _WORDS


def make_app(server: Server) -> FastAPI:
    """The application; its workers run while it runs."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for worker in server.workers:
            worker.start()
        yield
        for worker in server.workers:
            await asyncio.to_thread(worker.close)
        handlers.threads.shutdown(wait=False)

    # no pages that load scripts from elsewhere
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    handlers, statuses = _Handlers(server), Counter[int]()
    app.add_api_route("/v1/chat/completions", handlers.chat, methods=["POST"])
    app.add_api_route("/v1/models", handlers.models)
    app.add_api_route("/v1/models/{name:path}", handlers.model)
    app.add_api_route("/health", handlers.health)
    app.add_api_route("/metrics", lambda: _metrics(server, statuses))
    if server.page is not None:
        routes = PageRoutes(
            server.page,
            server.media,
            server.defaults,
            server.seconds,
            server.workers[0],
            needs_key=bool(server.key),
            read=handlers.body,
        )
        routes.mount(app)
    for kind in (Fault, 404, 405):
        app.add_exception_handler(kind, _faulty)
    app.add_middleware(_Guard, server=server, statuses=statuses)
    return app


class _Guard:
    """In front of all routes: who may come in, errors without stack traces, and the counts."""

    def __init__(self, app: _App, server: Server, statuses: Counter[int]) -> None:
        self.app, self.server, self.statuses = app, server, statuses

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def counted(message: _Scope) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.statuses[message["status"]] += 1
            await send(message)

        try:
            _expect_friend(Request(scope), self.server)
            await self.app(scope, receive, counted)
        except Exception as error:
            fault = fault_of(error)
            if fault.status == 500:
                _log.error("a request failed", exc_info=error)
            if not begun:
                await _response(fault)(scope, receive, counted)


def _metrics(server: Server, statuses: Counter[int]) -> PlainTextResponse:
    return PlainTextResponse(metrics_text(server.workers, server.places, statuses))


class _Handlers:
    """The routes of a server."""

    def __init__(self, server: Server) -> None:
        self.server, self._since = server, int(time.time())
        # a thread for each place: a large file that is read for its digest keeps nobody waiting
        self.threads = ThreadPoolExecutor(server.places.most, "timeviper-request")

    async def health(self) -> JSONResponse:
        alive = all(worker.alive for worker in self.server.workers)
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def models(self) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._model]})

    async def model(self, name: str) -> JSONResponse:
        if name != self.server.defaults.name:
            raise Fault(404, f"no model {name[:80]!r}", param="model", code="model_not_found")
        return JSONResponse(self._model)

    @property
    def _model(self) -> dict[str, Any]:
        name = self.server.defaults.name
        return {"id": name, "object": "model", "created": self._since, "owned_by": "timeviper_fast"}

    async def chat(self, request: Request) -> Response:
        """Answer, at once or in pieces. The place is taken before the body is read."""
        ends = time.monotonic() + self.server.seconds
        give_back = self.server.places.take()
        try:
            body = await self.body(request, ends)
            run = partial(asyncio.get_running_loop().run_in_executor, self.threads)
            asked = await run(read_request, body, self.server.defaults)
            del body
            media = await _in_time(run(self.server.media.find, asked.url), ends)
            pieces = Pieces() if asked.stream else None
            on_text = None if pieces is None else pieces.put
            job = Job(media, asked.opening, asked.question, on_text)
            # the text of a video is not kept while the question waits
            asked = replace(asked, url="")
        except BaseException:
            give_back()
            raise
        # Not when the client has read it: what a slow one leaves unread is the text of one answer,
        # and connections are bounded.
        job.done.add_done_callback(lambda _: give_back())
        number = int(media.digest[:8], 16) % len(self.server.workers)
        watching = asyncio.create_task(_watched(request, job, ends))
        job.done.add_done_callback(_ender(watching))
        self.server.workers[number].submit(job)
        return await _answered(job, Reply(asked), pieces)

    async def body(self, request: Request, ends: float) -> bytes:
        """The body. A client that sends it slowly would keep others out of its place."""
        soon = time.monotonic() + self.server.body_seconds
        try:
            body: bytes = await _in_time(_body(request, self.server.most_bytes), min(ends, soon))
        except Fault as fault:
            if fault.status == 504:
                raise Fault(408, "the body came too slowly", code="timeout") from None
            raise
        return body


async def _answered(job: Job, reply: Reply, pieces: Pieces | None) -> Response:
    """The response, whose status is known with the first piece of the answer."""
    if pieces is None:
        answered: Answered = await asyncio.wrap_future(job.done)
        return JSONResponse(reply.whole(answered))
    job.done.add_done_callback(lambda _: pieces.put(None))
    first = await pieces.get()
    if first is None:
        # an answer without text, or a fault, which is raised here
        job.done.result(timeout=0)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    told = events(job, reply, first, pieces)
    return StreamingResponse(told, headers=headers, media_type="text/event-stream")


def _ender(task: asyncio.Task[None]) -> Callable[[object], None]:
    """Ends a task of this loop, from any thread."""
    loop = asyncio.get_running_loop()

    def end(_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)

    return end


async def _watched(request: Request, job: Job, ends: float) -> None:
    """End a job whose client leaves, or waits too long."""
    try:
        await asyncio.wait_for(_gone(request), max(0.0, ends - time.monotonic()))
    except asyncio.TimeoutError:
        job.fail(too_long())
    else:
        job.fail(_left())


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def _in_time(work: Awaitable[Any], ends: float) -> Any:
    try:
        return await asyncio.wait_for(work, max(0.0, ends - time.monotonic()))
    except asyncio.TimeoutError:
        raise too_long() from None


def _left() -> Fault:
    return Fault(499, "the client has left", code="client_left")


async def _body(request: Request, most: int) -> bytes:
    """The body, of which not more than `most` bytes are read.

    A page of another origin cannot send JSON's content type without asking first, which nobody
    answers here.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Fault(415, "the content type must be application/json", code="unsupported_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Fault(415, "the body must not be compressed", code="unsupported_type")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal():
        raise invalid("Content-Length", "be a number")
    body, more = bytearray(), int(length) <= most
    while more and len(body) <= most:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise _left()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if not more and len(body) <= most:
            return bytes(body)
    raise Fault(413, f"a request may have {most:,} bytes at most", code="request_too_large")


def _expect_friend(request: Request, server: Server) -> None:
    """Refuse a request without the key, or by another name of this host than it answers to.

    Whether the server is well everybody may know, and the page's files, which ask for the key.
    """
    if server.hosts and _host(request) not in server.hosts:
        raise Fault(403, "this server does not answer to that host name", code="unknown_host")
    # not request.url: it is made from the host that the client names, which may hold a path
    if not server.key or request.scope["path"] in _OPEN:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), server.key.encode())
    if kind.lower() != "bearer" or not same:
        raise Fault(401, "the API key is missing or wrong", code="invalid_api_key")


def _host(request: Request) -> str:
    """The host's name in the request, without its port."""
    name, colon, port = request.headers.get("host", "").rpartition(":")
    return (name if colon and port.isdecimal() else f"{name}{colon}{port}").lower()


async def _faulty(_: Request, error: Exception) -> Response:
    if isinstance(error, Fault):
        return _response(error)
    status = getattr(error, "status_code", 500)
    headers = getattr(error, "headers", None)
    told = Fault(status, str(getattr(error, "detail", "failed")), code="http_error")
    return JSONResponse(told.body, status, headers)


def _response(fault: Fault) -> JSONResponse:
    return JSONResponse(fault.body, fault.status, fault.headers)
