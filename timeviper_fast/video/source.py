"""What a video may be given as, and the reader of each: paths, pipes, bytes, arrays, lists."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from stat import S_ISBLK, S_ISCHR, S_ISREG
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple

import numpy as np
from torch import Tensor

from timeviper_fast.errors import ArgumentError, VideoError, fail
from timeviper_fast.video.arrays import ArrayReader, ListReader, load_array, timeline
from timeviper_fast.video.directory import contents_of
from timeviper_fast.video.file import FileReader
from timeviper_fast.video.images import (
    AnimationReader,
    ImagesReader,
    is_animation,
    is_image,
    is_picture,
)
from timeviper_fast.video.packets import Progress

__all__ = ["Source", "find_source"]

Reader = ArrayReader | ListReader | ImagesReader | AnimationReader | FileReader
_STDIN = "standard input"


class Source(NamedTuple):
    """A source of frames.

    Attributes:
        name: as error messages print it.
        reader: gives the frames.
        copy: the directory of a temporary copy, which vanishes with this object.
    """

    name: str
    reader: Reader
    copy: TemporaryDirectory[str] | None = None


def find_source(source: Any, fps: float | None, progress: Progress | None) -> Source:
    """The source that `open_video` was given; it documents the argument and the errors."""
    if isinstance(source, (Tensor, np.ndarray)):
        return Source("frames", ArrayReader("frames", source, None, fps))
    if isinstance(source, (list, tuple)):
        return Source("frames", ListReader("frames", source, fps))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _copied("bytes", io.BytesIO(source), fps, progress)
    if hasattr(source, "read"):
        return _copied(str(getattr(source, "name", "stream")), source, fps, progress)
    if not isinstance(source, (str, os.PathLike)):
        rule = "be a path, bytes, a binary stream, an array, a tensor or a list of frames"
        raise ArgumentError("open_video", "source", rule, type(source).__name__)
    if not os.fspath(source):
        fail("open_video", "source", "not be empty (the current directory is '.')", source)
    path = Path(source)
    # a Path is a file of that name, as is ./-
    if source == "-":
        return _copied(_STDIN, _standard_input(), fps, progress)
    if not path.exists():
        # Print the original string: Path turns https:// into https:/. URLs are not supported.
        raise FileNotFoundError(f"{os.fspath(source)}: no such file or directory")
    mode = path.stat().st_mode
    if path.is_dir() or S_ISREG(mode) or S_ISBLK(mode):
        return Source(str(path), _reader(path, fps, progress))
    if str(path) == "/dev/stdin":
        # it may be a socket, which cannot be opened by its name
        return _copied(_STDIN, _standard_input(), fps, progress)
    if S_ISCHR(mode):
        raise VideoError(f"{path}: it is a device, not a file or a pipe")
    with path.open("rb") as pipe:
        return _copied(str(path), pipe, fps, progress)


def _standard_input() -> IO[bytes]:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise VideoError(f"{_STDIN}: it is closed")
    if stream.isatty():
        raise VideoError(f"{_STDIN}: it is a terminal; pipe a video into it, or redirect a file")
    return stream


def _copied(name: str, stream: Any, fps: float | None, progress: Progress | None) -> Source:
    """The source that a stream holds, from a temporary copy: a video is read more than once."""
    if getattr(stream, "closed", False):
        raise ArgumentError("open_video", "source", "be an open stream", f"the closed {name}")
    if not getattr(stream, "readable", lambda: True)():
        rule = "be a stream to read (a file opened with mode 'rb')"
        raise ArgumentError("open_video", "source", rule, name)
    directory = TemporaryDirectory(prefix="timeviper-fast-")
    path = Path(directory.name) / "video"
    if getattr(stream, "seekable", bool)():
        stream.seek(0)
    with path.open("wb") as file:
        try:
            shutil.copyfileobj(stream, file, 1 << 20)
        except TypeError:
            rule = "be a stream of bytes (a file opened with mode 'rb')"
            raise ArgumentError("open_video", "source", rule, type(stream).__name__) from None
    try:
        path = path.rename(path.with_suffix(_suffix(path)))
        return Source(name, _reader(path, fps, progress), directory)
    except VideoError as error:
        fault = error.fault.replace(str(path), name)
        raise VideoError(fault, error.argument, error.remedy) from error


def _suffix(path: Path) -> str:
    """The suffix that a file without one should have, by its first bytes; none for a video."""
    with path.open("rb") as file:
        start = file.read(6)
    kinds = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz"}
    known = next((suffix for magic, suffix in kinds.items() if start.startswith(magic)), "")
    return known or (".png" if is_picture(path) else "")


def _reader(path: Path, fps: float | None, progress: Progress | None) -> Reader:
    name = str(path)
    if path.is_dir():
        frames, video, notes = contents_of(path)
        if not video:
            return ImagesReader(name, frames, timeline(name, len(frames), None, fps), notes)
        reader = _reader(video, fps, progress)
        reader.notes += notes
        return reader
    if S_ISREG(path.stat().st_mode) and path.stat().st_size == 0:
        raise VideoError(f"{name}: the file is empty")
    if path.suffix.lower() in (".npy", ".npz"):
        return ArrayReader(name, *load_array(path), fps)
    if is_image(path) and not is_animation(path):
        return ImagesReader(name, [path], timeline(name, 1, None, fps), is_image=True)
    if fps is not None:
        rule = "be left out for a video file (it carries its own times)"
        raise ArgumentError("open_video", "fps", rule, fps)
    return AnimationReader(path, progress) if is_image(path) else FileReader(path, progress)
