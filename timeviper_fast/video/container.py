"""Video files opened by PyAV, and the stream that is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timeviper_fast.errors import VideoError
from timeviper_fast.video.bound import expect_few_pixels, expect_few_samples, most_pixels
from timeviper_fast.video.boxes import boxes, is_boxed
from timeviper_fast.video.playlist import refuse_playlist

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = [
    "NO_INDEX",
    "ffmpeg_name",
    "film_of",
    "import_av",
    "is_film",
    "lacks_index",
    "opened",
    "unseen",
]


def import_av(module: str = "") -> Any:
    """PyAV, or its submodule `module`."""
    try:
        return import_module(f"av.{module}" if module else "av")
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        remedy = 'pip install "timeviper-fast[video]"'
        raise VideoError(f"video files need the package av (PyAV); {remedy}") from error


def ffmpeg_name(path: Path) -> str:
    """The file's name for FFmpeg, which takes words before a colon for a protocol, such as http.

    With `file:` in front, FFmpeg opens the rest as a file name, whatever is in it.
    """
    return f"file:{path}"


@contextmanager
def opened(path: Path, file: Any = None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its video stream, closed at the end of the block.

    Args:
        path: the file's name.
        file: an object whose `read` gives the file's bytes, in place of FFmpeg's own reading.
    """
    refuse_playlist(path)
    expect_few_samples(path)
    av = import_av()
    try:
        # Without the pattern type, FFmpeg takes a percent sign in the name of an image for the
        # number of a series. PyAV 15 crashes on some containers if it is given any option.
        options = {"pattern_type": "none"} if "%" in str(path) else {}
        container = av.open(file or ffmpeg_name(path), options={} if file else options)
    except av.FFmpegError as error:
        why = NO_INDEX if lacks_index(path) else error.strerror
        raise VideoError(f"{path}: it cannot be opened as a video ({why})") from error
    with container:
        refuse_playlist(path, container.format.name)
        yield container, film_of(container, path)


def film_of(container: InputContainer, path: Path | str) -> VideoStream:
    """The video stream that is looked at, ready to be decoded.

    Raises:
        VideoError: there is none, or FFmpeg does not decode it.
    """
    # FFmpeg's tty demuxer renders text files as video
    if container.format.name == "tty":
        raise VideoError(f"{path}: it is a text file, not a video")
    stream = _film(container)
    if stream is None:
        why = NO_INDEX if _is_cut_off(path) else f"it holds {_kinds(container) or 'nothing'}"
        raise VideoError(f"{path}: it has no video stream ({why})")
    if stream.codec_context is None:
        why = NO_INDEX if _is_cut_off(path) else "FFmpeg has no decoder for it"
        raise VideoError(f"{path}: its video stream cannot be decoded ({why})")
    expect_few_pixels(path, stream.width or 0, stream.height or 0)
    most = most_pixels()
    if most is not None:
        # the pictures may become larger than the file says
        stream.codec_context.options = {"max_pixels": str(most)}
    stream.thread_type = "AUTO"
    return stream


def _is_cut_off(path: Path | str) -> bool:
    """Whether a file lacks its index; a live source, which is a text here, has none."""
    return isinstance(path, Path) and lacks_index(path)


def is_film(path: Path) -> bool:
    """Whether FFmpeg finds a video stream in a file of any name; False without PyAV."""
    try:
        with opened(path):
            return True
    except VideoError:
        return False


def unseen(container: InputContainer, seen: VideoStream) -> list[str]:
    """A sentence about further films in the file, as in recordings of several programs."""
    others = [_named(stream) for stream in _films(container) if stream is not seen]
    if not others:
        return []
    shown = ", ".join([*others[:_NAMED], *(["..."] if len(others) > _NAMED else [])])
    return [f"it holds {len(others) + 1} films; {_named(seen)} is read, not {shown}"]


def _named(stream: VideoStream) -> str:
    """A stream by its number in FFmpeg's lists, and the size of its pictures."""
    size = f" ({stream.width} x {stream.height})" if stream.width else ""
    return f"stream {stream.index}{size}"


def _films(container: InputContainer) -> list[VideoStream]:
    """The video streams that are no pictures; if there are none, those that are no covers."""
    kinds = import_av("stream").Disposition
    covers = kinds.attached_pic | kinds.still_image | kinds.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    return [stream for stream in streams if not _is_still(stream)] or streams


def _film(container: InputContainer) -> VideoStream | None:
    """The video stream that FFmpeg prefers, but no picture where there is a film.

    Where FFmpeg prefers a picture, a film that is marked as default comes first, then the one with
    most frames, then the largest, then the first.
    """
    films = _films(container)
    if not films:
        return None
    default = import_av("stream").Disposition.default
    best = container.streams.best("video")
    for stream in films:
        if stream is best:
            return stream

    def rank(stream: VideoStream) -> tuple[bool, int, int, int]:
        area = (stream.width or 0) * (stream.height or 0)
        return bool(stream.disposition & default), stream.frames, area, -stream.index

    return max(films, key=rank)


def _is_still(stream: VideoStream) -> bool:
    """Whether a stream holds one picture: by its frame count, or by its codec if there is none."""
    # FFmpeg makes no codec context where it knows no decoder
    codec = stream.codec_context.name if stream.codec_context else ""
    return stream.frames == 1 or (not stream.frames and codec in _STILLS)


def _kinds(container: InputContainer) -> str:
    """What the file holds in place of a film."""
    kinds = {"a cover picture" if s.type == "video" else s.type for s in container.streams}
    return ", ".join(sorted(kinds))


# so many further films are named
_NAMED = 3
_STILLS = frozenset({"bmp", "gif", "jpeg2000", "mjpeg", "png", "tiff", "webp"})

NO_INDEX = (
    "its index, which mp4 and mov files often end with, is not whole: the recording or download "
    "was probably cut off; mkv and ts files stay readable then"
)


def lacks_index(path: Path) -> bool:
    """Whether an mp4 or mov file ends before the end of its index (the moov box)."""
    end = path.stat().st_size
    with path.open("rb") as file:
        if not is_boxed(file.read(8)):
            return False
        return all(box.kind != b"moov" or box.end > end for box in boxes(file, 0, end))
