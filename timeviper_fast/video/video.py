"""Read videos of any kind as frames: rgb (T, H, W, 3) uint8, with the time of each in seconds.

`open_video` takes a video file, a directory of images, an .npz or .npy file, a tensor, an array, a
list of frames, bytes or a pipe. Frames are read in batches, so a long video is never in memory at
once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from threading import Event
from typing import Any, NoReturn, Protocol
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from timeviper_fast.errors import (
    ArgumentError,
    VideoError,
    expect_function,
    fail,
    is_integer,
    is_number,
)
from timeviper_fast.video.ahead import read_ahead
from timeviper_fast.video.packets import Progress
from timeviper_fast.video.sampling import Policy, parse_policy
from timeviper_fast.video.source import find_source
from timeviper_fast.video.times import Span, Time, frames_between, parse_span

__all__ = ["Frames", "Progress", "Video", "open_video", "read_video"]


@dataclass(frozen=True)
class Frames:
    """Some frames of a video, all of one size.

    Attributes:
        rgb: (T, H, W, 3) uint8.
        seconds: (T,) float64, when each is shown.
        lost_frames: the video's `lost_frames` when these were decoded (`on_error="use"`).
    """

    rgb: Tensor
    seconds: Tensor
    lost_frames: int = 0


class Reader(Protocol):
    """A source of frames; `FileReader` documents the attributes."""

    seconds: Tensor
    fps: float
    duration: float
    size: tuple[int, int]
    missing: int
    skipped: int
    notes: list[str]

    def read(self, positions: list[int], faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        """Pairs (position, (H, W, 3) uint8) for ascending positions; lost ones are left out."""
        ...


class Video(AbstractContextManager["Video"]):
    """A video's timeline, and its frames on request. Use it in a `with` block, or `close` it.

    Attributes:
        name: the source, as error messages print it.
        seconds: (T,) float64, when each of its frames is shown.
        fps: average frames per second.
        duration: seconds from the first frame's appearance to the last one's end.
        size: (height, width) in pixels of the first frame.
        sizes: every (height, width) that a frame had so far, in the order of their appearance. A
            stream may change its size midway; that is seen only when it is decoded.
        is_image: whether it is a single image, given by its name or its bytes.
        notes: what was left out or mended to read it, in sentences, such as files of a directory or
            flawed time stamps.
    """

    def __init__(
        self, name: str, reader: Reader, copy: object = None, *, on_error: str = "raise"
    ) -> None:
        self.name, self._copy = name, copy
        self.seconds, self.fps = reader.seconds, reader.fps
        self.duration, self.size = reader.duration, reader.size
        self.sizes: tuple[tuple[int, int], ...] = (reader.size,)
        self.notes = tuple(reader.notes)
        self._reader, self._on_error = reader, on_error
        self.is_image: bool = getattr(reader, "is_image", False)
        self._undecodable: set[int] = set()
        # Weak, because a thread that reads ahead holds this object: a reading that its user forgets
        # is collected nevertheless, and ends its thread.
        self._reading: ref[Any] | None = None
        if reader.missing and on_error == "raise":
            verb = "is" if reader.missing == 1 else "are"
            self._refuse(f"it ends early: {reader.missing} of its frames {verb} missing")

    @property
    def num_frames(self) -> int:
        """Frames that the source holds."""
        return len(self.seconds)

    @property
    def lost_frames(self) -> int:
        """Frames missing from the file (an estimate if its end is cut off), frames shown before its
        first key frame, and requested frames that did not decode."""
        reader = self._reader
        return reader.missing + reader.skipped + len(self._undecodable)

    def span(
        self,
        start: Time | None = None,
        end: Time | None = None,
        policy: str | Policy | None = None,
    ) -> Span:
        """The frames from `start` on and before `end`: see `times.frames_between`. A policy with a
        `span` of its own, as `VideoChatFlash`, may decide otherwise about frames at the borders."""
        between = frames_between(self.seconds, self.duration, start, end)
        own = getattr(policy and parse_policy(policy), "span", None)
        if own is None or start is end is None:
            return between
        return own(self.seconds, self.fps, self.duration, *parse_span(start, end)) or between

    def sample(
        self,
        policy: str | Policy = "fps:1",
        *,
        start: Time | None = None,
        end: Time | None = None,
    ) -> Tensor:
        """Positions (n,) int64 that a sampling policy chooses: see `sampling.parse_policy`.

        Args:
            policy: the policy, or its text form.
            start, end: choose among the frames from `start` on and before `end` only: seconds, or
                text as mm:ss or hh:mm:ss, in the video's own times.

        Raises:
            ValueError: no such policy or time, or the times lie outside the video.
        """
        first, stop, duration = self.span(start, end, policy)
        return parse_policy(policy).choose(self.seconds[first:stop], self.fps, duration) + first

    def frames(
        self,
        indices: Tensor | Sequence[int],
        batch_size: int = 16,
        *,
        ahead: int = 0,
        pin_memory: bool = False,
    ) -> Iterator[Frames]:
        """Decode the frames at `indices`, `batch_size` at a time.

        Args:
            indices: positions in 0 .. num_frames - 1, ascending; a repeated one repeats its frame.
            batch_size: most frames per batch; it bounds the memory.
            ahead: a background thread decodes while the caller works, up to so many batches ahead;
                with 0, decoding waits for the caller. `ahead + 2` batches may be in memory. The
                thread ends with the iterator and with `close`.
            pin_memory: put the frames in page-locked memory, for asynchronous copies to a GPU.

        Returns:
            Batches in order; where the frames' size changes, a batch ends early. With
            `on_error="use"` undecodable frames are left out and counted.

        Raises:
            ValueError: an argument breaks its rule.
            VideoError: a frame cannot be decoded, or with `on_error="use"` none of them.
        """
        wanted = (indices if isinstance(indices, Tensor) else np.asarray(indices)).tolist()
        if not (isinstance(wanted, list) and all(map(is_integer, wanted))):
            raise ArgumentError("frames", "indices", "be a list of integers", f"{wanted!r:.60}")
        if not (is_integer(batch_size) and batch_size >= 1):
            fail("frames", "batch_size", "be an integer above 0", batch_size)
        if not (is_integer(ahead) and ahead >= 0):
            fail("frames", "ahead", "be an integer of 0 or more", ahead)
        if any(late < early for early, late in pairwise(wanted)):
            raise ArgumentError("frames", "indices", "ascend", "a smaller one after a larger one")
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self.num_frames:
            rule = f"lie in 0 .. {self.num_frames - 1}"
            raise ArgumentError("frames", "indices", rule, f"{wanted[0]} .. {wanted[-1]}")
        self.close()
        batches = partial(self._batches, Counter(wanted), batch_size, pin_memory)
        reading = read_ahead(batches, ahead) if ahead else batches(Event())
        self._reading = ref(reading)
        return reading

    def close(self) -> None:
        """End the reading in progress, if any, and close its file."""
        reading = self._reading() if self._reading else None
        if reading is not None:
            reading.close()
        self._reading = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(
        self, wanted: Counter[int], batch_size: int, pin_memory: bool, ended: Event
    ) -> Iterator[Frames]:
        """The wanted frames in batches; none any more once `ended` is set."""
        length = min(batch_size, wanted.total())
        positions: list[int] = []
        rgb, decoded = torch.empty((0, 0, 0, 3), dtype=torch.uint8), False
        for position, picture in self._pictures(wanted):
            if ended.is_set():
                return
            height, width, _ = picture.shape
            if (height, width) not in self.sizes:
                self.sizes += ((height, width),)
            for _ in range(wanted[position]):
                if positions and picture.shape != rgb.shape[1:]:
                    yield self._batch(rgb[: len(positions)], positions)
                    positions = []
                if not positions:
                    size = (length, *picture.shape)
                    rgb = torch.empty(size, dtype=torch.uint8, pin_memory=pin_memory)
                rgb.numpy()[len(positions)] = picture
                positions.append(position)
                if len(positions) == length:
                    yield self._batch(rgb, positions)
                    positions = []
            decoded = True
        if positions:
            yield self._batch(rgb[: len(positions)], positions)
        if wanted and not decoded:
            raise VideoError(f"{self.name}: none of the {len(wanted)} frames can be decoded")

    def _batch(self, rgb: Tensor, positions: list[int]) -> Frames:
        return Frames(rgb, self.seconds[positions], self.lost_frames)

    def _pictures(self, wanted: Counter[int]) -> Iterator[tuple[int, np.ndarray]]:
        """The wanted frames that decode; the others are counted, or raise."""
        faults: list[str] = []
        due = list(wanted)
        end = (self.num_frames, None)
        pictures = self._reader.read(due, faults)
        done = 0
        while done < len(due):
            position, picture = next(pictures, end)
            while done < len(due) and due[done] < position:
                self._lose(due[done], faults)
                done += 1
            if picture is not None:
                yield position, picture
                done += 1

    def _lose(self, position: int, faults: list[str]) -> None:
        self._undecodable.add(position)
        if self._on_error == "raise":
            why = f" ({faults[0]})" if faults else ""
            at = float(self.seconds[position])
            self._refuse(f"frame {position} at {at:.3f} s cannot be decoded{why}")

    def _refuse(self, what: str) -> NoReturn:
        remedy = "on_error='use' takes what can be decoded"
        raise VideoError(f"{self.name}: {what}", "on_error", remedy)


def open_video(
    source: Any,
    *,
    fps: float | None = None,
    on_error: str = "raise",
    progress: Progress | None = None,
) -> Video:
    """Open a video of any kind.

    Args:
        source: one of

            - a video file by its name, which is taken as it is: a colon makes no address, a percent
              sign no series, `~` no home directory, and URLs are not read. A playlist (m3u8, DASH,
              a list for FFmpeg's concat) is refused: it holds no video, only the names of pieces;
            - a directory of images, in natural order of their names (frame 2 before frame 10),
              turned as EXIF says, 16-bit grey by its high byte. Other files are left out and named
              in `notes`. Of a video and at most one image, its cover, the video is read;
            - one image, which may be an animated GIF, PNG, WebP or AVIF;
            - an .npy file, tensor or array (frames, height, width, 3) uint8; an .npz file with such
              an array `frames` and, optionally, its `seconds`;
            - a list of frames: arrays or tensors (height, width, 3) uint8, or Pillow images, all of
              one size;
            - the bytes of any such file, or a binary stream of them (`io.BytesIO`, a file opened
              with "rb"), read from its start where it can seek;
            - a pipe by its name, or the text `-` for standard input (`./-` is a file). Pipes and
              bytes are copied to a temporary file, which vanishes with the `Video`.
        fps: frames per second of images and arrays (1 when left out); a file carries its own.
        on_error: "raise" on frames that are missing or cannot be decoded, or "use" the others and
            count the lost ones in `lost_frames`.
        progress: called with ("scan", bytes read, bytes of the file) while a video file is read
            through, which takes seconds where the file is hours long; of an animated image with
            its frames in place of bytes.

    Raises:
        FileNotFoundError: there is nothing at this path.
        VideoError: it is no video, or not whole; the message names it and says why.
        ValueError: an argument breaks its rule.
    """
    if fps is not None and not (is_number(fps) and fps > 0):
        fail("open_video", "fps", "be a finite number above 0", fps)
    if on_error not in ("raise", "use"):
        fail("open_video", "on_error", "be one of raise, use", on_error)
    expect_function("open_video", progress=progress)
    return Video(*find_source(source, fps, progress), on_error=on_error)


def read_video(
    source: Any,
    policy: str | Policy = "fps:1",
    *,
    fps: float | None = None,
    on_error: str = "raise",
) -> Frames:
    """The frames of a short video that a policy chooses, all in memory; see `open_video`.

    Raises:
        VideoError: as `open_video`, or the frames are of several sizes.
    """
    with open_video(source, fps=fps, on_error=on_error) as video:
        chosen = video.sample(policy)
        batches = list(video.frames(chosen, batch_size=len(chosen)))
        if len(batches) > 1:
            sizes = " and ".join(f"{width}x{height}" for height, width in video.sizes)
            what = "open_video reads such a video, in batches of one size each"
            raise VideoError(f"{video.name}: its frames are of several sizes ({sizes}); {what}")
        return Frames(batches[0].rgb, batches[0].seconds, video.lost_frames)
