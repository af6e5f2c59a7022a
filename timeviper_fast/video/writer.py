"""Write video files through PyAV, completely or not at all."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, count, zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from timeviper_fast.errors import ArgumentError, VideoError, fail, is_number
from timeviper_fast.video.container import ffmpeg_name, import_av

__all__ = ["write_video"]

_OWNER = "write_video"


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray | Tensor],
    fps: float | Fraction = 25,
    *,
    seconds: Iterable[float] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> None:
    """Encode frames to a video file, which appears only when it is complete.

    Args:
        path: the file, by its name as it is: `a:b.mp4` is no address and `a%d.mp4` no series. Its
            suffix chooses the container (.mp4, .mkv, .ts, ...). Its directory is made.
        frames: (H, W, 3) uint8 each, all of one even height and width; taken one at a time.
        fps: frames per second, unless `seconds` is given.
        seconds: presentation time of every frame, ascending, for a variable frame rate.
        codec: an encoder of FFmpeg that takes yuv420p.
        options: the encoder's own options, such as {"g": "250", "crf": "18"}.

    Raises:
        VideoError: no frames, frames of an odd or changing size, or no such encoder or container.
        ValueError: another argument is of a wrong kind, or `seconds` does not ascend or has not one
            time for each frame.
    """
    _check(path, frames, fps, seconds, options)
    target = Path(path)
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    rate = Fraction(fps).limit_denominator(1001)
    # use the coarsest time base that can express the times: some codecs allow no finer one
    tick = 1 / rate if seconds is None else Fraction(1, 90_000)
    av = import_av()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with av.open(ffmpeg_name(partial), "w") as container:
            if container.format.no_file:
                rule = "its container must be one file"
                raise ValueError(f"{rule}, got {container.format.name}")
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.codec_context.time_base = tick
            stamped = zip(frames, count()) if seconds is None else _stamped(frames, seconds, tick)
            _encode(container, stream, stamped, target)
        partial.replace(target)
    except (VideoError, ArgumentError):
        raise
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{target}: it cannot be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _check(path: Any, frames: Any, fps: Any, seconds: Any, options: Any) -> None:
    if not isinstance(path, (str, os.PathLike)):
        fail(_OWNER, "path", "be the name of a file", path)
    for name, value in (("frames", frames), ("seconds", seconds)):
        if not (isinstance(value, Iterable) or (name == "seconds" and value is None)):
            fail(_OWNER, name, "be a sequence or an iterator", value)
    if not (isinstance(fps, Fraction) or is_number(fps)) or fps <= 0:
        fail(_OWNER, "fps", "be a finite number above 0", fps)
    if options is not None and not (
        isinstance(options, dict) and all(isinstance(x, str) for x in chain(*options.items()))
    ):
        fail(_OWNER, "options", "be a dict of strings, such as {'g': '250'}", options)


def _stamped(
    frames: Iterable[Any], seconds: Iterable[float], tick: Fraction
) -> Iterator[tuple[Any, int]]:
    """Each frame with its time in ticks."""
    missing, last = object(), -math.inf
    for frame, time in zip_longest(frames, seconds, fillvalue=missing):
        if frame is missing or time is missing:
            what = "fewer" if time is missing else "more"
            fail(_OWNER, "seconds", "have one time for each frame", f"{what} times")
        stamp = round(Fraction(cast(float, time)) / tick) if is_number(time) else last
        if stamp <= last:
            fail(_OWNER, "seconds", "be finite numbers that ascend", time)
        last = stamp
        yield frame, int(stamp)


def _encode(container: Any, stream: Any, stamped_frames: Iterable[Any], target: Path) -> None:
    stream.pix_fmt = "yuv420p"
    size: tuple[int, ...] = ()
    for frame, stamp in stamped_frames:
        rgb = np.ascontiguousarray(frame)
        if not size:
            size = rgb.shape
            stream.height, stream.width = size[:2]
        if rgb.shape != size or rgb.ndim != 3 or size[2] != 3 or size[0] % 2 or size[1] % 2:
            rule = "be (height, width, 3) of one even height and width"
            raise VideoError(f"{target}: frames must {rule}, got shape {tuple(rgb.shape)}")
        picture = import_av().VideoFrame.from_ndarray(rgb, format="rgb24")
        picture.pts, picture.time_base = stamp, stream.codec_context.time_base
        container.mux(stream.encode(picture))
    if not size:
        raise VideoError(f"{target}: frames must hold at least one frame, got none")
    container.mux(stream.encode(None))
