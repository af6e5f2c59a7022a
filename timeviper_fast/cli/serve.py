"""`timeviper-fast serve`: questions about videos over HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from timeviper_fast.cli.app import (
    MODEL_HELP,
    BackendName,
    Chunk,
    Dtype,
    DtypeName,
    FrameBatch,
    Salvage,
    Sample,
    StagesText,
    named,
)
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import ArgumentError, is_number
from timeviper_fast.inference.request import Opening, Question

if TYPE_CHECKING:
    from timeviper_fast.timeviper import TimeViper

__all__ = ["KEY", "LOCAL_NAMES", "expect_libraries", "serve"]

# the environment variable of the key
KEY = "TIMEVIPER_API_KEY"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# of this machine in requests, where an IPv6 address has brackets
LOCAL_NAMES = frozenset({*_LOOPBACK, "[::1]"})
_GB, _MB = 10**9, 10**6


def serve(
    media_root: Annotated[
        str, typer.Option(help="Folder whose files may be asked about.", callback=named)
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP, callback=named)] = TINY,
    name: Annotated[
        str | None,
        typer.Option(
            help="The model's name for clients; default: --model, of a folder its last part."
        ),
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
    max_megapixels: Annotated[
        float, typer.Option(help="Millions of pixels of a picture of a video.")
    ] = 34.0,
    time_limit: Annotated[float, typer.Option(help="Seconds for a request.")] = 600.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens that a request may ask for.")
    ] = 1024,
    page: Annotated[
        bool, typer.Option("--page", help="Show a page to browsers, at /; it lists the videos.")
    ] = False,
    policy: Sample = None,
    stages: StagesText = None,
    salvage: Salvage = False,
    frame_batch: FrameBatch = Opening.frame_batch,
    chunk: Chunk = Opening.chunk,
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
    key = _key(host)
    on_error = "use" if salvage else "raise"
    opening = Opening(
        policy, frame_batch=frame_batch, chunk=chunk, on_error=on_error, stages=stages
    )
    Question("?", max_new_tokens)
    with importing():
        expect_libraries(page=page)
        from timeviper_fast.serve.app import Server
        from timeviper_fast.serve.listen import Listener, expect_free
        from timeviper_fast.serve.media import MediaRoot
        from timeviper_fast.serve.page import Page
        from timeviper_fast.serve.protocol import Defaults
        from timeviper_fast.serve.worker import Places, Worker
    upload = int(_positive("max_upload_mb", max_upload_mb) * _MB)
    kept = int(_positive("session_gb", session_gb) * _GB)
    pixels = int(_positive("max_megapixels", max_megapixels) * _MB)
    seconds = _positive("time_limit", time_limit)
    media = MediaRoot(media_root, upload)
    expect_free(host, port)
    models = _models(model, devices or [None], dtype, quiet)
    workers = [Worker(one, kept, backend, pixels) for one in models]
    hosts: frozenset[str] = frozenset() if key else LOCAL_NAMES
    # the embedded model has learnt from single questions
    shown = Page(remember=model != TINY) if page else None
    defaults = Defaults(name or _public(model), opening, max_new_tokens)
    server = Server(workers, media, defaults, Places(queue), seconds, key, hosts, page=shown)
    Listener(server, host, port, "warning" if quiet else "info").run()


def _public(model: str) -> str:
    """The model's name without the folders of this machine."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model


def _positive(option: str, value: float) -> float:
    if not (is_number(value) and value > 0):
        raise ArgumentError("", option, "be a number above 0", value)
    return value


def _models(
    path: str, devices: Sequence[str | None], dtype: DtypeName | None, quiet: bool
) -> list[TimeViper]:
    """The model on each of the devices; None is the first that there is."""
    with importing():
        from timeviper_fast.cli.terminal import err, progress_bars
        from timeviper_fast.timeviper import TimeViper
    with progress_bars(err, hidden=quiet) as progress:
        told = partial(progress, "weights")
        return [
            TimeViper.from_pretrained(path, device=device, dtype=dtype, progress=told)
            for device in devices
        ]


def _key(host: str) -> str:
    """The key that clients must send; without one only this machine may ask."""
    key = os.environ.get(KEY, "").strip()
    if not key and host not in _LOOPBACK:
        rule = f"be one of {', '.join(_LOOPBACK)} without a key"
        raise ArgumentError("", "host", rule, host, f"set {KEY}")
    return key


def expect_libraries(*, page: bool) -> None:
    """Raise an ArgumentError unless what the server needs is installed, and what its page needs."""
    needed = {
        "FastAPI and uvicorn": ("fastapi", "uvicorn"),
        **({"Pillow": ("PIL",)} if page else {}),
    }
    for name, packages in needed.items():
        if any(find_spec(package) is None for package in packages):
            remedy = f"install timeviper-fast[{'page' if page else 'serve'}]"
            raise ArgumentError("serve", name, "be installed", "none", remedy)
