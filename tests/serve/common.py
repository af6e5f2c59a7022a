"""What tests of the server share: a folder of videos, a server in a thread, and requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai

from timeviper_fast.inference.request import Opening, Question
from timeviper_fast.serve.app import Server
from timeviper_fast.serve.listen import Listener
from timeviper_fast.serve.media import MediaRoot
from timeviper_fast.serve.protocol import Defaults
from timeviper_fast.serve.worker import Job, Places, Worker
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video import write_video

KEY = "the key"
OPENING = Opening("fps:1")
MB = 10**6


def small_video(path: Path, seed: int, seconds: int = 3) -> Path:
    """A video of random colours, one frame per second; each seed has its own."""
    colours = np.random.default_rng(seed).integers(0, 255, (seconds, 6, 8, 3), np.uint8)
    write_video(path, colours.repeat(8, 1).repeat(8, 2), 1)
    return path


def job(media: MediaRoot, url: str, question: str = "What?", tokens: int = 6, **rest: Any) -> Job:
    """A question about a video of the folder."""
    return Job(media.find(url), OPENING, Question(question, tokens), **rest)


def served(model: TimeViper, root: Path, **changed: Any) -> Server:
    """A server of one worker with a key."""
    given: dict[str, Any] = {
        "workers": [Worker(model, 1000 * MB)],
        "media": MediaRoot(root, MB),
        "defaults": Defaults("tiny", OPENING, 512),
        "places": Places(64),
        "seconds": 60.0,
        "key": KEY,
        "body_seconds": 10.0,
    }
    return Server(**{**given, **changed})


@contextmanager
def running(server: Server) -> Iterator[str]:
    """The server's address, where it runs on a free port."""
    process = Listener(server, "127.0.0.1", 0, "error")
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    wait_for(lambda: process.started)
    try:
        yield f"http://127.0.0.1:{process.servers[0].sockets[0].getsockname()[1]}"
    finally:
        process.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def client_of(address: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)


def messages(url: str, question: str = "What?") -> list[Any]:
    """A conversation of one question about a video."""
    video = {"type": "video_url", "video_url": {"url": url}}
    return [{"role": "user", "content": [video, {"type": "text", "text": question}]}]


def body(url: str = "a.mp4", question: str = "What?", **fields: Any) -> dict[str, Any]:
    """A request's body."""
    return {"model": "tiny", "messages": messages(url, question), "max_tokens": 6, **fields}


def wait_for(holds: Any, seconds: float = 20) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)
