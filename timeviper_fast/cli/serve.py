"""`timeviper-fast serve`: questions about videos over HTTP."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timeviper_fast.cli.app import MODEL_HELP, BackendName, Dtype, named
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import ArgumentError, is_number
from timeviper_fast.inference.request import Opening, Question
from timeviper_fast.stages import STAGES_FORMS

if TYPE_CHECKING:
    from timeviper_fast.serve.app import Server

__all__ = ["KEY", "serve"]

# the environment variable of the key
KEY = "TIMEVIPER_API_KEY"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_GB, _MB = 10**9, 10**6
# connections beyond those that may ask: health, metrics, and refusals
_SPARE = 64


def serve(
    media_root: Annotated[
        str, typer.Option(help="Folder whose files may be asked about.", callback=named)
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP, callback=named)] = TINY,
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients; default: as in --model.")
    ] = None,
    host: Annotated[
        str, typer.Option(help=f"Address to listen at; others than this one's need ${KEY}.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests at a time; others are told to come again.")
    ] = 64,
    session_gb: Annotated[
        float, typer.Option(help="GB of host memory for videos that were read, for each device.")
    ] = 4.0,
    max_upload_mb: Annotated[
        float, typer.Option(help="MB of a video that comes in a request.")
    ] = 64.0,
    time_limit: Annotated[float, typer.Option(help="Seconds for a request.")] = 600.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens that a request may ask for.")
    ] = 1024,
    policy: Annotated[
        str | None, typer.Option("--sample", help="As in ask; default: the model's.")
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(help=f"Drop vision tokens: {STAGES_FORMS}; default: the model's stages."),
    ] = None,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Use what can be decoded of damaged video.")
    ] = False,
    frame_batch: Annotated[
        int | None, typer.Option(help="Frames encoded at a time.")
    ] = Opening.frame_batch,
    chunk: Annotated[
        int | None, typer.Option(help="Tokens per pass through the LLM.")
    ] = Opening.chunk,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bars and no line for each request.")
    ] = False,
    devices: Annotated[
        list[str] | None,
        typer.Option(
            "--device", help="cpu, cuda or cuda:N; give it again for each further device."
        ),
    ] = None,
    dtype: Dtype = None,
    backend: BackendName = None,
) -> None:
    """Answer questions about videos as an OpenAI-compatible server, until it is stopped.

    A video is a file under the media folder, or comes in the request. Nothing is fetched.
    """
    for option, value in (
        ("session_gb", session_gb),
        ("max_upload_mb", max_upload_mb),
        ("time_limit", time_limit),
    ):
        if not (is_number(value) and value > 0):
            raise ArgumentError("", option, "be a number above 0", value)
    key = _key(host)
    on_error = "use" if salvage else "raise"
    opening = Opening(
        policy, frame_batch=frame_batch, chunk=chunk, on_error=on_error, stages=stages
    )
    Question("?", max_new_tokens)
    with importing():
        uvicorn = _uvicorn()
        from timeviper_fast.cli.terminal import err, progress_bars
        from timeviper_fast.serve.app import Server, make_app
        from timeviper_fast.serve.media import MediaRoot
        from timeviper_fast.serve.protocol import Defaults
        from timeviper_fast.serve.worker import Places, Worker
        from timeviper_fast.timeviper import TimeViper
    media = MediaRoot(media_root, int(max_upload_mb * _MB))
    with progress_bars(err, hidden=quiet) as progress:
        told = partial(progress, "weights")
        loaded = [
            TimeViper.from_pretrained(model, device=device, dtype=dtype, progress=told)
            for device in devices or [None]
        ]
    workers = [Worker(one, int(session_gb * _GB), backend) for one in loaded]
    hosts: frozenset[str] = frozenset() if key else frozenset({*_LOOPBACK, "[::1]"})
    defaults = Defaults(name or model, opening, max_new_tokens)
    server = Server(workers, media, defaults, Places(queue), time_limit, key, hosts)
    uvicorn.run(make_app(server), **_listening(server, host, port, quiet))


def _listening(server: Server, host: str, port: int, quiet: bool) -> dict[str, Any]:
    """Options of the HTTP server."""
    return {
        "host": host,
        "port": port,
        "log_level": "warning" if quiet else "info",
        "server_header": False,
        "limit_concurrency": server.places.most + _SPARE,
        # what is computed at the end stops soon after
        "timeout_graceful_shutdown": 5,
    }


def _key(host: str) -> str:
    """The key that clients must send; without one only this machine may ask."""
    key = os.environ.get(KEY, "")
    if not key and host not in _LOOPBACK:
        rule = f"be one of {', '.join(_LOOPBACK)} without a key"
        raise ArgumentError("", "host", rule, host, f"set {KEY}")
    return key


def _uvicorn() -> Any:
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        remedy = "install timeviper-fast[serve]"
        raise ArgumentError(
            "serve", "FastAPI and uvicorn", "be installed", "none", remedy
        ) from error
    return uvicorn
