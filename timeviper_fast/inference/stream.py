"""A video that is still coming, and is asked between its frames."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import ArgumentError, fail, is_integer, is_number
from timeviper_fast.inference.answer import check_tokenizer, stop_ids_of
from timeviper_fast.inference.bounded import parse_bound
from timeviper_fast.inference.chat import Chat
from timeviper_fast.inference.encode import Encoded, FrameEncoder
from timeviper_fast.inference.ended import Ended
from timeviper_fast.inference.footage import Footage
from timeviper_fast.inference.labelled import Labeller, push_frames
from timeviper_fast.inference.plan import prompt_lengths
from timeviper_fast.inference.prefix import Prefix
from timeviper_fast.inference.request import Opening, Question, question_prompt
from timeviper_fast.inference.room import fitting_batch
from timeviper_fast.inference.session import Session
from timeviper_fast.inference.stream_file import read_stream, write_stream
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.fingerprint import state_of_weights
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.video import Frames

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Stream", "open_stream"]

# text tokens of a question that has to fit behind the frames
_TEXT = 60


class Stream:
    """A video without a known end: `push` frames, `ask` at any time.

    A question sees everything that was pushed. Asking goes on a fork and changes nothing: how
    frames are pushed, and what is asked in between, does not change a bit of any answer. An answer
    equals that of the same frames in a file, opened with the same `chunk` and `frame_batch`, bit
    for bit.

    Where a uniform stage keeps (p - 1) of p tokens (1/2, 3/4, 7/8 ...), that holds without knowing
    the number of frames; a question at a number for which it does not is refused. With `frames`
    announced it holds for every stage, once all have come. It does not hold for a single frame
    where the model encodes images otherwise than frames: a file of one frame is an image.

    Attributes:
        exact: whether its answers are those of the whole video; a bound, once it has forgotten
            something, and a fixed rhythm (`even=True`) are not.
        pushed: frames that were pushed so far.
    """

    def __init__(
        self,
        model: TimeViperNetwork,
        tokenizer: PreTrainedTokenizerBase,
        opening: Opening,
        stages: tuple[CompressionStage, ...],
        before: Sequence[int],
        *,
        fps: float,
        frames: int | None,
        bounded: str | None,
        even: bool,
    ) -> None:
        self._settings = {"frames": frames, "fps": fps, "bounded": bounded, "even": even}
        announced, bound = frames, None if bounded is None else parse_bound(bounded)
        self.model, self.tokenizer, self.opening = model, tokenizer, opening
        self.before, self._stages = tuple(before), stages
        # the model's stages may change
        self._network = model.with_stages(stages)
        self._backbone, self._weights = self._network.backbone, state_of_weights(self._network)
        self._fps, self._announced, self._bound = fps, announced, bound
        self._encoder = FrameEncoder(model, opening.frame_batch)
        self._labels = Labeller(model.config, tokenizer)
        expected = None
        if announced is not None:
            # a stream's frames are those of a video, even if there is one
            clip = model.config.clip_frames
            tokens = -(-announced // clip) * model.config.tokens_per_clip
            span = VisualSpan(len(before), tokens)
            expected = Segment(span.stop, span, frame_tokens=model.config.frame_tokens(2))
        self._prefix = Prefix(
            self._backbone,
            chunk=opening.chunk,
            expected=expected,
            # labels name seconds, so that their lengths are not known before the frames come
            labelled=bool(self._labels),
            even=even,
            frame_tokens=model.config.frame_tokens(2),
        )
        ids = torch.tensor([list(before)], dtype=torch.long, device=model.device)
        self._prefix.push(model.backbone.embeddings(ids), vision=False)
        # seconds of frames that were encoded and are left; those that wait are the encoder's
        self._seconds = torch.empty(0, dtype=torch.float64)
        self.pushed = self._per_frame = 0
        self._broken, self._turn = False, Lock()
        self._latest = float("-inf")
        self._now: Session | None = None

    @property
    def exact(self) -> bool:
        stages = self._prefix.stages
        return not self._prefix.forgetful and all(stage.exact for stage in stages)

    @torch.no_grad()
    def push(self, frames: Any, seconds: Any = None) -> None:
        """Take the next frames. A question from another thread waits for its end.

        Args:
            frames: one frame or several: uint8 (height, width, 3) or (frames, height, width, 3),
                a tensor or an array; or `Frames`, which have their seconds.
            seconds: when each is shown, later than the one before; at the stream's `fps` when None.

        Raises:
            ValueError: frames of another kind, seconds that do not ascend, more frames than were
                announced or than fit the model's window, or an earlier push that broke off midway.
        """
        with self._turn:
            self._push(frames, seconds)

    def _push(self, frames: Any, seconds: Any) -> None:
        self._check_whole()
        taken = _frames(frames, seconds, self._latest, self._fps)
        count = len(taken.seconds)
        if not count:
            return
        if self._announced is not None and self.pushed + count > self._announced:
            rule = f"be at most the {self._announced} that were announced"
            fail("push", "frames", rule, self.pushed + count)
        self._check_room(taken.seconds)
        # an interrupted push has taken some of its frames: pushed again they would come twice
        self._broken = True
        done = self.pushed - self._encoder.waiting
        for part in self._encoder.push(taken):
            self._read(self._prefix, part, done)
            done += len(part.seconds)
            self._seconds = torch.cat([self._seconds, part.seconds])
            while self._forget():
                pass
        self.pushed += count
        self._latest, self._now = float(taken.seconds[-1]), None
        self._broken = False

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a file from which the stream goes on: `TimeViper.load_stream`. A file to be asked
        alone is that of `now().save(path)`.

        Raises:
            ValueError: a push broke off midway, or a path that must not be replaced.
            OSError: it cannot be written, or the disk is full; an old file is as before.
        """
        with self._turn:
            self._check_whole()
            latest = self._latest if self.pushed else None
            told = {
                "opening": {n: getattr(self.opening, n) for n in ("lead", "chunk", "frame_batch")},
                "settings": self._settings,
                "counts": {"pushed": self.pushed, "per_frame": self._per_frame, "latest": latest},
            }
            parts = (self._prefix, self._encoder.pending, self._seconds, self._stages, told)
            write_stream(path, *parts, self.model, self.tokenizer, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        model: TimeViperNetwork,
        tokenizer: PreTrainedTokenizerBase | None,
        path: str | os.PathLike[str],
    ) -> Stream:
        """The stream of a file; `TimeViper.load_stream` has the details."""
        if tokenizer is None:
            fail("load_stream", "model", "have a tokenizer", None, "set model.tokenizer")
        with read_stream(path, model, tokenizer) as stored:
            opened = open_stream(model, tokenizer, stored.opening, stored.stages, **stored.settings)
            opened._encoder.pending, opened._seconds = stored.restore(opened._prefix)
            counts = stored.counts
            opened.pushed, opened._per_frame = counts["pushed"], counts["per_frame"]
            if counts["latest"] is not None:
                opened._latest = counts["latest"]
            return opened

    def ask(self, question: str | Sequence[Any], **options: Any) -> Any:
        """Answer a question, or a list of them, about everything that was pushed so far.

        The arguments and errors are those of `Session.ask`. `now()` asks several questions of one
        moment.

        Raises:
            ValueError: no frame was pushed, a push broke off midway, or a uniform stage is not
                exact at this number of frames.
        """
        return self.now().ask(question, **options)

    def chat(self) -> Chat:
        """A conversation about what was pushed so far; `Session.chat` has the details."""
        return self.now().chat()

    @torch.no_grad()
    def now(self) -> Session:
        """Everything that was pushed so far, as a session; the stream goes on without it.

        Raises:
            ValueError: as `ask`.
        """
        with self._turn:
            return self._session()

    def _session(self) -> Session:
        self._check_whole()
        if self._now is not None:
            return self._now
        if not self.pushed:
            fail("stream", "frames", "have come before a question", 0)
        if self._announced is not None and self.pushed < self._announced:
            rule = f"have come, all {self._announced} that were announced, before a question"
            fail("stream", "frames", rule, self.pushed)
        prefix, seconds = self._prefix.fork(), self._seconds
        rest = self._encoder.rest()
        if rest is not None:
            self._read(prefix, rest, self.pushed - self._encoder.waiting)
            seconds = torch.cat([seconds, rest.seconds])
        prefix.finish()
        ended = Ended.of(prefix)
        self._now = Session(
            self.model,
            self.tokenizer,
            ended,
            before=self.before,
            footage=self._footage(seconds),
            opening=self.opening,
            stages=self._stages,
            exact=self.exact,
        )
        return self._now

    def _footage(self, seconds: Tensor) -> Footage:
        """Of frames at `seconds`; the last one is shown as long as the one before."""
        step = 1 / self._fps if len(seconds) < 2 else float(seconds[-1] - seconds[-2])
        return Footage(
            name="stream",
            seconds=seconds,
            duration=float(seconds[-1] - seconds[0]) + step,
            tokens_per_frame=self._per_frame,
            clip=self.model.config.clip_frames,
            tubelet=self.model.config.vision.frames_per_patch,
        )

    def _read(self, prefix: Prefix, part: Encoded, done: int) -> None:
        """Read frames behind `done` others."""
        self._per_frame = part.tokens.shape[1]
        openings = self._labels.openings(part.seconds, done)
        push_frames(prefix, self._backbone.embeddings, part, openings)

    def _forget(self) -> int:
        """Forget what the bound says; how many frames that were."""
        if self._bound is None:
            return 0
        clip, share = self.model.config.clip_frames, self.model.config.vision.frames_per_patch
        gone = self._bound.gone(self._seconds)
        # the tokens of a clip hold patches of all its frames: it goes as a whole
        clips, counts = (gone // clip).unique(return_counts=True)
        frames = (clips[counts == clip][:, None] * clip + torch.arange(clip)).flatten()
        shape = (len(self._seconds) // share, self._per_frame)
        numbers = self._prefix.numbers[: math.prod(shape)].unflatten(0, shape)
        frames = frames[numbers[frames // share, -1] < self._prefix.through]
        self._prefix.forget(numbers[(frames // share).unique()].flatten())
        stays = torch.ones(len(self._seconds), dtype=torch.bool)
        stays[frames] = False
        self._seconds = self._seconds[stays]
        return len(frames)

    def _check_whole(self) -> None:
        if self._broken:
            rule = "be whole: a push was interrupted midway"
            fail("stream", "the video", rule, "half read", "push its frames to a new stream")
        now = state_of_weights(self._network)
        if now != self._weights:
            rule = f"have the weights with which the stream began, {self._weights}"
            fail("stream", "model", rule, now, "push the frames to a new stream")

    def _check_room(self, seconds: Tensor) -> None:
        """Refuse frames that no question would fit behind, before they are read: in the model's
        window, and in a GPU's memory."""
        config = self.model.config
        if self._bound is not None:
            # a bound forgets between batches
            seconds = seconds[: self._encoder.frame_batch]
        waiting = self._encoder.waiting
        frames = len(self._seconds) + waiting + len(seconds)
        times = torch.cat([self._encoder.waiting_seconds, seconds])
        openings = self._labels.openings(times, self.pushed - waiting)
        front = self._prefix.segment.text + sum(map(len, openings))
        sizes = (frames, front, _TEXT, Question.max_new_tokens)
        held, chunk = self._prefix.nbytes, self.opening.chunk
        fitting_batch(self.model, *sizes, held=held, chunk=chunk, most=1)
        vision = -(-frames // config.clip_frames) * config.tokens_per_clip
        each = config.frame_tokens(2)
        whole = Segment(front + vision + 1, VisualSpan(front, vision), frame_tokens=each)
        try:
            prompt_lengths(config.backbone, self._stages, whole, 1)
        except ArgumentError as error:
            if error.argument != "prompt and answer":
                # a stage that leaves nothing of so few frames is no matter before a question
                return
            rule = f"fit the model's window of {config.backbone.max_position_embeddings} tokens"
            remedy = 'bounded="window:1h" forgets older frames (approximate)'
            raise ArgumentError("push", "frames", rule, error.value, remedy) from None


def open_stream(
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase | None,
    opening: Opening,
    stages: tuple[CompressionStage, ...],
    *,
    frames: int | None,
    fps: float,
    bounded: str | None,
    even: bool,
) -> Stream:
    """A stream without frames; `TimeViper.stream` says what each argument may be."""
    if tokenizer is None:
        remedy = "set model.tokenizer, or put the tokenizer's files beside the weights"
        fail("stream", "model", "have a tokenizer", None, remedy)
    if frames is not None and not (is_integer(frames) and frames > 0):
        fail("stream", "frames", "be a positive number, or None where it is not known", frames)
    if not (is_number(fps) and fps > 0):
        fail("stream", "fps", "be a number above 0", fps)
    if not isinstance(even, bool):
        fail("stream", "even", "be True or False", even)
    for name in ("chunk", "frame_batch"):
        if getattr(opening, name) is None:
            fail("stream", name, "be a positive number", None)
    if bounded is not None:
        parse_bound(bounded)
    if bounded is not None and frames is not None:
        fail("stream", "bounded", "be None where the frames are announced", bounded)
    if bounded is not None and any(stage.by_content for stage in stages):
        fail("stream", "bounded", "be None with a stage that selects by content", bounded)
    prompt = question_prompt(model.config, tokenizer, opening, Question("?"), 1, 1.0, False)
    check_tokenizer(model.config, prompt, stop_ids_of(tokenizer, model.config))
    options = {"fps": float(fps), "frames": frames, "bounded": bounded, "even": even}
    with torch.no_grad():
        return Stream(model, tokenizer, opening, stages, prompt.before, **options)  # type: ignore[arg-type]


def _frames(frames: Any, seconds: Any, latest: float, fps: float) -> Frames:
    """Checked frames with ascending seconds behind `latest`."""
    if isinstance(frames, Frames):
        frames, seconds = frames.rgb, frames.seconds if seconds is None else seconds
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.ascontiguousarray(frames))
    if isinstance(frames, (list, tuple)) and frames:
        pictures = [torch.as_tensor(frame) for frame in frames]
        sizes = {tuple(picture.shape) for picture in pictures}
        if len(sizes) > 1:
            fail("push", "frames", "be of one size", sorted(sizes), "push each size by itself")
        frames = torch.stack(pictures)
    if isinstance(frames, Tensor) and frames.ndim == 3:
        frames = frames[None]
    if not (
        isinstance(frames, Tensor)
        and frames.ndim == 4
        and frames.shape[-1] == 3
        and frames.shape[1:3].numel()
        and frames.dtype == torch.uint8
    ):
        kind = type(frames).__name__
        if isinstance(frames, Tensor):
            kind = f"{tuple(frames.shape)} {frames.dtype}"
        rule = "be uint8 (height, width, 3) or (frames, height, width, 3)"
        raise ArgumentError("push", "frames", rule, kind)
    if seconds is None:
        first = 0.0 if latest == float("-inf") else latest + 1 / fps
        times = first + torch.arange(len(frames), dtype=torch.float64) / fps
    else:
        try:
            times = torch.as_tensor(seconds, dtype=torch.float64).flatten().cpu()
        except (TypeError, ValueError):
            fail("push", "seconds", "be numbers", seconds)
    if len(times) != len(frames):
        rule = f"have one for each of the {len(frames)} frames"
        fail("push", "seconds", rule, len(times))
    before = torch.cat([torch.tensor([latest], dtype=torch.float64), times])
    if not bool((before[1:] > before[:-1]).all()) or not bool(times.isfinite().all()):
        raise ArgumentError("push", "seconds", "be finite and ascend", f"{before.tolist()!r:.80}")
    return Frames(frames, times)
