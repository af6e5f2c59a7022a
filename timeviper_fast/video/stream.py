"""Videos without a known end: a file that is being written, a directory that fills, a camera."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from pathlib import Path
from stat import S_ISREG
from time import monotonic
from typing import Any

import torch

from timeviper_fast.errors import VideoError, fail, is_number
from timeviper_fast.video.arriving import Arrivals, arriving
from timeviper_fast.video.container import film_of, import_av, opened
from timeviper_fast.video.film import Shown, Tally, film, in_order
from timeviper_fast.video.growing import Patience, growing_file
from timeviper_fast.video.pace import Pace, online_policy
from timeviper_fast.video.sampling import Policy
from timeviper_fast.video.video import Frames

__all__ = ["FrameStream", "open_stream"]

_OWNER = "open_stream"


class FrameStream(Iterator[Frames], AbstractContextManager["FrameStream"]):
    """Frames as they come, one at a time, at a policy's pace.

    Iterating waits for frames. The stream ends when its source does, after the quiet time, or when
    `end` is called; a source that vanishes or shrinks raises a `VideoError` behind its last frame.

    Attributes:
        name: the source, as error messages print it.
    """

    def __init__(
        self,
        name: str,
        fps: float,
        patience: Patience,
        tally: Tally,
        pictures: Callable[[], Iterator[Shown]],
    ) -> None:
        self.name = name
        self._patience, self._tally, self._is_closed = patience, tally, False
        self._frames = self._chosen(pictures, Pace(fps))

    @property
    def lost_frames(self) -> int:
        """Frames so far that are damaged, or could not be decoded."""
        return self._tally.lost

    @property
    def repeated_frames(self) -> int:
        """Frames so far that were left out because they are not later than the one before."""
        return self._tally.repeated

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or mended so far, in sentences."""
        return self._tally.sentences()

    def end(self) -> None:
        """Nothing more will be written: iterating ends behind the last frame that is there.

        May be called from any thread. A camera or an address ends with its next frame.
        """
        self._patience.end()

    def close(self) -> None:
        """End at once, and close the file. From another thread: with the next frame."""
        self._is_closed = True
        self._patience.end()
        # it may be running in another thread
        with suppress(ValueError):
            self._frames.close()  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Frames:
        return next(self._frames)

    def _chosen(
        self, pictures: Callable[[], Iterator[Shown]], pace: Pace[Shown]
    ) -> Iterator[Frames]:
        came = False
        found: Any = pictures()
        with closing(found):
            for shown in in_order(found, self._tally):
                if self._is_closed:
                    return
                came = True
                yield from map(self._made, pace.push(shown, shown.second))
        yield from map(self._made, pace.end(self._tally.last))
        if self._tally.end:
            raise VideoError(f"{self.name}: {self._tally.end}")
        if not came and not self._is_closed:
            why = f" ({self._tally.faults[0]})" if self._tally.faults else ""
            raise VideoError(f"{self.name}: no frame came{why}")

    def _made(self, shown: Shown) -> Frames:
        rgb = torch.from_numpy(shown.rgb().copy())[None]
        return Frames(rgb, torch.tensor([shown.second], dtype=torch.float64), self._tally.lost)


def open_stream(
    source: str | os.PathLike[str],
    policy: str | Policy = "fps:1",
    *,
    quiet: float | None = 10.0,
    fps: float | None = 1.0,
    settle: float = 1.0,
    live: bool = False,
    format: str | None = None,
    options: Mapping[str, str] | None = None,
    poll: float = 0.2,
) -> FrameStream:
    """Open a video that goes on while it is read.

    Nothing is read before the first frame is asked for. Times are presentation times, as the source
    states them. Frames that are damaged or repeat a time are left out and counted.

    Args:
        source: one of

            - a video file that is being written: mpegts, mkv, webm, fragmented mp4, and others that
              are read from front to back. What is whole is read, and more is waited for. An mp4 or
              mov file whose index stands behind the frames is read when it is whole, and refused
              before;
            - a directory that fills with images (files with the suffix of an image), in natural
              order of their names;
            - with `live`, what PyAV opens: a camera or an address.
        policy: fps:RATE. Whether a frame is chosen is known when the next one comes.
        quiet: seconds without growth after which the source has ended; None waits until `end`. A
            live source that sends nothing for so long has ended, too.
        fps: frames per second of a directory; None takes the files' times of modification.
        settle: seconds for which an image file must be unchanged before it is taken, and during
            which files may arrive out of order.
        live: hand `source` to PyAV as it is. It may then open network addresses and devices.
        format, options: of `av.open`, for live sources, such as "v4l2" and {"framerate": "30"}.
        poll: seconds between two looks at a file or directory.

    Raises:
        FileNotFoundError: there is nothing at this path.
        ValueError: an argument breaks its rule, or the policy depends on the video's end.
        VideoError: while iterating: it is no video, or vanished, or became shorter.
    """
    pace = online_policy(policy)
    for name, value in (("quiet", quiet), ("fps", fps)):
        if value is not None and not (is_number(value) and value > 0):
            fail(_OWNER, name, "be a finite number above 0, or None", value)
    for name, value in (("settle", settle), ("poll", poll)):
        if not (is_number(value) and value >= 0):
            fail(_OWNER, name, "be a finite number of 0 or more", value)
    if not live and (format is not None or options):
        fail(_OWNER, "format and options", "be left out but for live sources", (format, options))
    patience, tally = Patience(quiet, poll), Tally()
    pictures: Callable[[], Iterator[Shown]]
    if live:
        name = os.fspath(source)
        pictures = partial(_live, name, format, dict(options or {}), patience, tally)
        return FrameStream(name, pace.fps, patience, tally, pictures)
    path = Path(source)
    if not path.exists():
        what = "no such file or directory; cameras and addresses are live sources"
        raise FileNotFoundError(f"{os.fspath(source)}: {what}")
    if path.is_dir():
        pictures = partial(arriving, path, Arrivals(fps, settle), patience, tally)
    elif S_ISREG(path.stat().st_mode):
        pictures = partial(_file, path, patience, tally)
    else:
        raise VideoError(f"{path}: it is neither a file nor a directory", "live", "set live=True")
    return FrameStream(str(path), pace.fps, patience, tally, pictures)


def _file(path: Path, patience: Patience, tally: Tally) -> Iterator[Shown]:
    """The pictures of a file that is being written."""
    with growing_file(path, patience) as file:
        try:
            with opened(path, file) as (container, stream):
                yield from film(container, stream, tally)
        except VideoError as error:
            if not file.fault:
                raise
            raise VideoError(f"{path}: {file.fault}") from error
        tally.end = file.fault


def _live(
    name: str, format: str | None, options: dict[str, str], patience: Patience, tally: Tally
) -> Iterator[Shown]:
    """The pictures of what PyAV opens."""
    av = import_av()
    try:
        container: Any = av.open(name, format=format, options=options, timeout=patience.quiet)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{name}: PyAV cannot open it ({error})") from error
    came = monotonic()
    with container:
        for shown in film(container, film_of(container, name), tally):
            if patience.told:
                return
            yield shown
            came = monotonic()
    if patience.quiet is not None and monotonic() - came >= patience.quiet:
        # the time for one reading has passed, which is how a live source ends
        tally.cut = ""
