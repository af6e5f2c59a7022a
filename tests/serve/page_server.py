"""A server with a page, videos of plain colours, and the colour of a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from tests.serve.common import running
from timeviper_fast import TimeViper
from timeviper_fast.inference.request import Opening
from timeviper_fast.serve.app import Server
from timeviper_fast.serve.media import MediaRoot
from timeviper_fast.serve.page import Page
from timeviper_fast.serve.protocol import Defaults
from timeviper_fast.serve.worker import Places, Worker
from timeviper_fast.video import write_video

# one for each second: far apart, so that what encoders lose does not mix them up
COLOURS = (
    (200, 30, 30),
    (30, 200, 30),
    (30, 30, 200),
    (220, 220, 30),
    (30, 200, 200),
    (240, 240, 240),
)
NAME = "timeviper-fast/tiny"


def plain_video(path: Path, *, fps: int = 1) -> Path:
    """A video of 64 x 48 pixels whose second number n has the colour COLOURS[n]."""
    frames = (np.full((48, 64, 3), colour, np.uint8) for colour in COLOURS for _ in range(fps))
    write_video(path, frames, fps, options={"crf": "4"})
    return path


def colour_of(image: str) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """(width, height) and the middle pixel of a data URL of a JPEG."""
    head, data = image.split(",", 1)
    assert head == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert picture.format == "JPEG"
    width, height = picture.size
    return picture.size, picture.convert("RGB").getpixel((width // 2, height // 2))


def data_url(path: Path) -> str:
    """A video as it comes in a request."""
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


@contextmanager
def page_server(
    model: TimeViper,
    root: Path,
    *,
    page: Page | None = None,
    worker: type[Worker] = Worker,
    places: int = 8,
    upload: int = 10**6,
    key: str = "",
) -> Iterator[str]:
    """The address of a running server."""
    hosts = frozenset() if key else frozenset({"127.0.0.1"})
    server = Server(
        [worker(model, 10**8)],
        MediaRoot(root, upload),
        Defaults(NAME, Opening()),
        Places(places),
        30.0,
        key,
        hosts,
        page=page,
    )
    with running(server) as address:
        yield address
