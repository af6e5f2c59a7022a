"""Frames to visual tokens, batch by batch: decode, resize, vision, merge, project."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timeviper_fast.errors import fail
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stops import Stop, StopWatch
from timeviper_fast.video import Frames, Progress, Video
from timeviper_fast.video.preprocess import resize_normalize

__all__ = [
    "Encoded",
    "FrameEncoder",
    "encode_video",
    "filling_note",
    "note_size",
    "shape_of",
    "token_seconds",
]

# So many frames are decoded, copied and resized at a time: it bounds the memory for their pictures.
_PIECE = 16
# so many batches of frames are decoded ahead of the encoder
_AHEAD = 2


class Encoded(NamedTuple):
    """One batch of encoded frames.

    Attributes:
        tokens: (frames, n, d_model) on the model's device; (tubelets, n, d_model) where a patch
            holds several frames.
        seconds: (frames,) float64 on the CPU; fewer than tokens where the last clip is filled with
            copies of the last frame.
    """

    tokens: Tensor
    seconds: Tensor


class Pending(NamedTuple):
    """Frames that wait for their batch: what a stream's file stores.

    Attributes:
        pixels: (k, 3, height, width) on the model's device, of its dtype.
        seconds: (k,) float64 on the CPU.
    """

    pixels: Tensor
    seconds: Tensor


class FrameEncoder:
    """Frames to visual tokens, in batches of exactly `frame_batch` frames, however they arrive.

    What the vision encoder computes at a time depends neither on how the frames are split into
    pushes nor on where their size changes, so the tokens are equal bit for bit.

    Args:
        model: encodes them.
        frame_batch: frames per batch, rounded up to whole clips; 256 on CUDA and 16 elsewhere when
            None.
        images: encode each frame alone, as an image.
        watch: times the stops resize, vision, merge and project.
        project: whether tokens are those of the LLM; else they are the merged features.

    Attributes:
        frame_batch: the frames per batch, in whole clips.
        taken: frames that were pushed so far.
    """

    def __init__(
        self,
        model: TimeViperNetwork,
        frame_batch: int | None = None,
        *,
        images: bool = False,
        watch: StopWatch | None = None,
        project: bool = True,
    ) -> None:
        self.model, self.images, self._project = model, images, project
        self._clip = 1 if images else model.config.clip_frames
        self._share = model.config.vision.frames_per_patch
        batch = frame_batch or (256 if model.device.type == "cuda" else 16)
        self.frame_batch = -(-batch // self._clip) * self._clip
        self.taken = 0
        # a watch of the CPU does not synchronise a GPU
        self._watch = watch or StopWatch(torch.device("cpu"))
        shape = (self.frame_batch, 3, *model.config.vision.frame_size)
        self._pixels = torch.empty(shape, dtype=model.dtype, device=model.device)
        self._seconds = torch.empty(0, dtype=torch.float64)

    def push(self, frames: Frames) -> Iterator[Encoded]:
        """Take frames; yield the batches that they fill. The rest waits for further frames.

        Frames are taken while the iterator runs, so it must be exhausted. They are resized and
        normalised on the model's device, a few at a time, and nothing of `frames` is kept.
        """
        if len(frames.rgb) != len(frames.seconds):
            got = (len(frames.rgb), len(frames.seconds))
            fail("push", "frames", "have one second for each picture", got)
        for first in range(0, len(frames.seconds), _PIECE):
            rgb, seconds = (x[first : first + _PIECE] for x in (frames.rgb, frames.seconds))
            self.taken += len(seconds)
            pixels = self._resized(rgb)
            while len(pixels):
                room = self.frame_batch - len(self._seconds)
                self._wait(pixels[:room], seconds[:room])
                pixels, seconds = pixels[room:], seconds[room:]
                if len(self._seconds) == self.frame_batch:
                    tokens = self._encoded(self._pixels)
                    full, self._seconds = self._seconds, self._seconds[:0]
                    yield Encoded(tokens, full)

    def rest(self) -> Encoded | None:
        """The frames that wait, encoded; None if none do.

        Copies of the last frame fill the last clip. The frames wait on for the batch that later
        pushes may fill: a stream is asked between pushes, and goes on as if it had not been.
        """
        waiting = len(self._seconds)
        if not waiting:
            return None
        pixels, missing = self._pixels[:waiting], -waiting % self._clip
        if missing:
            pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
        return Encoded(self._encoded(pixels), self._seconds)

    @property
    def waiting(self) -> int:
        """Frames that wait for their batch."""
        return len(self._seconds)

    @property
    def waiting_seconds(self) -> Tensor:
        """(waiting,) float64 on the CPU, when those are shown."""
        return self._seconds

    @property
    def pending(self) -> Pending:
        """A copy of the frames that wait."""
        return Pending(self._pixels[: len(self._seconds)].clone(), self._seconds.clone())

    @pending.setter
    def pending(self, pending: Pending) -> None:
        """Let these frames wait in place of those that do, as after loading a stream's file.

        Raises:
            ValueError: pixels of another shape or dtype, as many as fill a batch, or of another
                number than seconds.
        """
        pixels, seconds = pending
        if pixels.shape[1:] != self._pixels.shape[1:] or pixels.dtype != self._pixels.dtype:
            rule = f"have pixels (k, {', '.join(map(str, self._pixels.shape[1:]))}) "
            got = (tuple(pixels.shape), pixels.dtype)
            fail("FrameEncoder", "pending", rule + f"of {self._pixels.dtype}", got)
        if not len(pixels) == len(seconds) < self.frame_batch:
            rule = f"have as many seconds as pixels, and fewer than {self.frame_batch}"
            fail("FrameEncoder", "pending", rule, (len(pixels), len(seconds)))
        self._seconds = self._seconds[:0]
        self._wait(pixels, seconds)

    def _wait(self, pixels: Tensor, seconds: Tensor) -> None:
        """Put frames behind those that wait; there is room for them."""
        first = len(self._seconds)
        self._pixels[first : first + len(pixels)] = pixels
        # `cat` copies: nothing of the caller's memory is kept
        self._seconds = torch.cat([self._seconds, seconds.to("cpu", torch.float64)])

    @torch.no_grad()
    def _resized(self, rgb: Tensor) -> Tensor:
        """(frames, 3, size, size) normalised pixels on the model's device, in its dtype."""
        vision, model = self.model.config.vision, self.model
        with self._watch.at("resize") as stop:
            pixels = resize_normalize(
                rgb.to(model.device, non_blocking=True),
                vision.frame_size,
                vision.image_mean,
                vision.image_std,
                vision.resize,
            ).to(model.dtype)
            stop.shape = f"{self.taken} x {shape_of(pixels[0])}"
        return pixels

    @torch.no_grad()
    def _encoded(self, pixels: Tensor) -> Tensor:
        """Visual tokens (frames, n, d_model) of one batch."""
        model = self.model
        done = self.taken if self.images else -(-self.taken // self._share)
        with self._watch.at("vision") as stop:
            features = model.vision(pixels, self.images)
            note_size(stop, features, done)
        with self._watch.at("merge") as stop:
            grid = model.vision.grid(*pixels.shape[-2:])
            merged = model.projector.merge(features, self.images, grid)
            note_size(stop, merged, done)
        if not self._project:
            return merged
        with self._watch.at("project") as stop:
            tokens = model.projector.project(merged)
            note_size(stop, tokens, done)
        return tokens


def encode_video(
    model: TimeViperNetwork,
    source: Video,
    indices: Tensor,
    frame_batch: int | None,
    watch: StopWatch,
    progress: Progress | None,
    *,
    project: bool = True,
) -> Iterator[Encoded]:
    """Visual tokens of the frames at `indices`, in batches of `frame_batch` frames.

    A background thread decodes up to two batches ahead, into page-locked memory where the model is
    on a GPU. The stop "decode" is therefore not the work of decoding but the time for which the
    encoder waited for frames. Closing the iterator, or an error, ends the thread and closes the
    file.

    If the last clip lacks frames, its last frame is repeated: there are more tokens than seconds.
    A single frame is an image: it is encoded alone. Without `project` tokens are merged features.
    """
    images = len(indices) == 1
    # no longer than the video, which one batch may hold
    batch = frame_batch or (256 if model.device.type == "cuda" else 16)
    batch = min(batch, len(indices))
    encoder = FrameEncoder(model, batch, images=images, watch=watch, project=project)
    piece = min(_PIECE, encoder.frame_batch)
    ahead = -(-_AHEAD * encoder.frame_batch // piece)
    pin_memory = model.device.type == "cuda"
    batches: Any = source.frames(indices, piece, ahead=ahead, pin_memory=pin_memory)
    done = 0
    with closing(batches):
        for encoded in _batches(encoder, batches, watch):
            done += len(encoded.seconds)
            if progress is not None:
                progress("frames", done, len(indices))
            yield encoded


def _batches(
    encoder: FrameEncoder, batches: Iterator[Frames], watch: StopWatch
) -> Iterator[Encoded]:
    """Everything that decodes, encoded."""
    while (frames := _next(batches, watch, encoder.taken)) is not None:
        yield from encoder.push(frames)
    last = encoder.rest()
    if last is not None:
        yield last


def _next(batches: Iterator[Frames], watch: StopWatch, done: int) -> Frames | None:
    """The next decoded frames, None behind the last ones; `done` came before them."""
    with watch.at("decode") as stop:
        frames = next(batches, None)
        if frames is not None:
            stop.shape = f"{done + len(frames.seconds)} x {shape_of(frames.rgb[0])}"
    return frames


def token_seconds(times: Tensor, counts: Sequence[int], clip: int = 1) -> Tensor:
    """The second of each vision token: that of its frame, or of its clip's middle frame.

    Args:
        times: (frames,) seconds of the frames that were looked at.
        counts: vision tokens of each frame; frames beyond the last one repeat it, as in a clip
            that is filled up.
        clip: frames that are merged together. Their tokens hold patches of any of them.
    """
    last = len(times) - 1
    frames = torch.arange(len(counts)).clamp_max(last)
    first = frames // clip * clip
    # the earlier one of two middle frames; repeated frames do not count
    middle = (first + (first + clip - 1).clamp_max(last)) // 2
    return times[middle].repeat_interleave(torch.tensor(counts))


def filling_note(frames: int, clip: int, repeated: int = 0) -> tuple[str, ...]:
    """A sentence about the copies of the last frame that fill clips; () if there are none.

    Args:
        frames: how many were looked at.
        clip: frames that are encoded or merged together.
        repeated: how many of them are copies of the last one, by the sampling policy.
    """
    missing = -frames % clip + repeated
    if clip == 1 or not missing:
        return ()
    copies = "1 copy" if missing == 1 else f"{missing} copies"
    return (f"To fill clips of {clip} frames, the video ends with {copies} of its last frame.",)


def shape_of(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))


def note_size(stop: Stop, batch: Tensor, frames: int) -> None:
    """Sizes of one stop over the whole video, read off one batch of it."""
    stop.shape = f"{frames} x {shape_of(batch[0])}"
    stop.tokens = str(frames * batch.shape[1])
