"""Samples of an annotation file: a row's sampled and preprocessed frames, and its conversation."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from timeviper_fast.config import VisionConfig
from timeviper_fast.dataset.features import FeatureCache
from timeviper_fast.dataset.frames import Chosen, Sampling
from timeviper_fast.dataset.kinds import KINDS, kind_faults, messages_of
from timeviper_fast.dataset.media import MediaIndex, Timeline
from timeviper_fast.dataset.randomness import hash63
from timeviper_fast.dataset.rows import Row, Rows
from timeviper_fast.dataset.sample import Cost, Draw, Limits, Sample
from timeviper_fast.errors import ArgumentError, DataError, fail
from timeviper_fast.text.messages import Message
from timeviper_fast.text.prompt import training_prompt, vision_preface
from timeviper_fast.video import open_video
from timeviper_fast.video.preprocess import resize_normalize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ConversationSource", "TextCounter", "View"]

# frames that are decoded and resized at a time, to bound a worker's memory
_BATCH = 16


@dataclass(frozen=True)
class TextCounter:
    """Counts the text tokens of a training sample, so that packs are planned without decoding."""

    tokenizer: PreTrainedTokenizerBase
    template: str = "nano_base"

    def __call__(
        self, messages: Sequence[Message], vision: bool, preface: str, placeholder: str | None
    ) -> int:
        """Tokens of the conversation in its template, without the vision tokens."""
        return training_prompt(
            self.tokenizer,
            messages,
            template=self.template,
            vision=vision,
            preface=preface,
            placeholder=placeholder,
        ).length(0)


class View(NamedTuple):
    """The chosen frames of a video: `pixels`, `features` and `parts` as in `Sample`."""

    pixels: Tensor | None
    features: Tensor | None
    parts: tuple[tuple[str, int], ...]


class ConversationSource:
    """The rows of an annotation file as samples; a `Source`.

    Args:
        name: its name in error messages, mixtures and metrics.
        rows: the annotation file.
        vision: the model's vision configuration.
        count_text: counts text tokens, such as `TextCounter(tokenizer, template)`.
        kind: one of "conversation", "caption", "detailed", "grounding" and "text". Rows of
            "caption" and "detailed" may have a caption instead of a conversation. Grounding rows
            whose span no sampled frame shows are dropped before the first draw.
        sampling: how frames are sampled, in clips of the size that the projector merges.
        index: the timelines of the videos.
        features: cache of merged features. A sample has features instead of pixels if they are
            cached; otherwise it has parts, with which `FeatureCache.complete` adds them.
        mention_duration: whether `video_sentence` follows the vision tokens; None means only for
            grounding.
        leave_out: rows of the file that are never drawn, such as those with faults.
        template: the chat template, which says what stands directly behind the vision tokens.

    Raises:
        ValueError: an argument breaks its rule.
    """

    def __init__(
        self,
        name: str,
        rows: Rows,
        vision: VisionConfig,
        count_text: Callable[[Sequence[Message], bool, str, str | None], int],
        *,
        kind: str = "conversation",
        sampling: Sampling | None = None,
        index: MediaIndex | None = None,
        features: FeatureCache | None = None,
        mention_duration: bool | None = None,
        leave_out: Sequence[int] = (),
        template: str = "nano_base",
    ) -> None:
        if kind not in KINDS:
            fail("ConversationSource", "kind", f"be one of {', '.join(KINDS)}", kind)
        self.name, self.kind, self.vision = name, kind, vision
        self.sampling, self.index = sampling or Sampling(), index or MediaIndex()
        self.mention_duration = (
            kind == "grounding" if mention_duration is None else mention_duration
        )
        if kind == "grounding" and self.sampling.jitter:
            rule = "be left out for kind='grounding' (its spans must be hit for certain)"
            raise ArgumentError("ConversationSource", "sampling.jitter", rule, "True")
        self._rows, self._count_text, self._features = rows, count_text, features
        self._left_out = frozenset(leave_out)
        self.template = template
        self._limits = Limits(max_frames=max(64, self.sampling.unit))
        self._drawable: Sequence[int] | None = None
        self._filtered = 0

    def limits(self, limits: Limits) -> ConversationSource:
        """The same rows within other limits.

        Raises:
            ArgumentError: the limits allow no whole clip.
        """
        self.sampling.bounds(limits)
        other = copy(self)
        other._limits = limits
        if self.kind == "grounding":
            # the number of frames decides which spans a frame shows
            other._drawable = None
        return other

    @property
    def rows(self) -> Sequence[int]:
        """The drawable rows of the file. For grounding, this looks up all videos once."""
        if self._drawable is None:
            kept: Sequence[int] = range(len(self._rows))
            if self._left_out:
                kept = array("q", (i for i in kept if i not in self._left_out))
            if self.kind == "grounding":
                before = len(kept)
                kept = array("q", self._hit(kept))
                self._filtered = before - len(kept)
            self._drawable = kept
        return self._drawable

    @property
    def filtered(self) -> int:
        """Number of grounding rows that are dropped because no sampled frame shows their span."""
        _ = self.rows
        return self._filtered

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        """A drawable row.

        Raises:
            DataError: the row breaks a rule.
        """
        return self._row(self.rows[index])

    def cost(self, index: int, draw: Draw) -> Cost:
        """Frames and text tokens of a sample, without decoding.

        Raises:
            DataError: the row breaks a rule, or its video cannot be opened.
        """
        row = self.row(index)
        with self.naming(index):
            messages = self.messages(row, draw)
            if row.media is None:
                return Cost(0, self._count_text(messages, False, "", None))
            chosen = self.choose(row, draw)
            preface = self._preface(row, chosen)
            text = self._count_text(messages, True, preface, row.placeholder)
            return Cost(len(chosen.positions), text)

    def load(self, index: int, draw: Draw) -> Sample:
        """The sample of a row, with decoded pixels or with cached features.

        Raises:
            DataError: the row breaks a rule, or its video cannot be read.
        """
        row, name = self.row(index), f"{self.name}:{self.rows[index]}"
        with self.naming(index):
            messages = self.messages(row, draw)
            if row.media is None:
                return Sample(messages, name=name)
            chosen = self.choose(row, draw)
            view = self.see(row.media, chosen)
            return Sample(
                messages,
                *view[:2],
                preface=self._preface(row, chosen),
                placeholder=row.placeholder,
                needed=_shown(row, chosen),
                seconds=tuple(chosen.seconds.tolist()),
                name=name,
                parts=view.parts,
            )

    def messages(self, row: Row, draw: Draw) -> tuple[Message, ...]:
        return messages_of(row, self.kind, hash63(draw.seed, "words"))

    def text_tokens(
        self, messages: Sequence[Message], preface: str, placeholder: str | None
    ) -> int:
        """Text tokens of a conversation about a video or image."""
        return self._count_text(messages, True, preface, placeholder)

    def choose(self, row: Row, draw: Draw) -> Chosen:
        """The frames of a row that the model sees; an image has one."""
        if row.media is None:
            raise DataError(self.name, "a row without video has no frames")
        timeline = self.index.timeline(row.media)
        if row.is_image:
            zero = torch.zeros(1, dtype=torch.int64)
            return Chosen(zero, timeline.seconds[zero], 0.0, 0.0, 1)
        seed = hash63(draw.seed, "frames")
        return self.sampling.choose(timeline, row.start, row.end, self._limits, seed)

    def see(self, path: Path, chosen: Chosen, *, cached: bool = True) -> View:
        """The chosen frames, resized and normalised, or their features if they are cached.

        Args:
            path: the video.
            chosen: the frames to read.
            cached: whether to read cached features; False always decodes.
        """
        size = self._limits.image_size or self.vision.image_size
        parts: tuple[tuple[str, int], ...] = ()
        if self._features is not None:
            key = self._features.key(path, chosen.positions.tolist(), size)
            parts = ((key, len(chosen.positions)),)
            kept = self._features.read(key) if cached else None
            if kept is not None:
                return View(None, kept, parts)
        look = self.vision
        with open_video(path) as video:
            pixels = [
                resize_normalize(frames.rgb, size, look.image_mean, look.image_std, look.resize)
                for frames in video.frames(chosen.positions, _BATCH)
            ]
        return View(torch.cat(pixels), None, parts)

    @contextmanager
    def naming(self, index: int) -> Iterator[None]:
        """Turn errors of the block into DataErrors that name the row."""
        try:
            yield
        except DataError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(self._rows.where(self.rows[index]), str(error)) from error

    def _row(self, number: int) -> Row:
        row = self._rows[number]
        faults = kind_faults(row, self.kind)
        if faults:
            raise DataError(self._rows.where(number), faults[0])
        return row

    def _preface(self, row: Row, chosen: Chosen) -> str:
        if row.media is None:
            return ""
        told = self.mention_duration and not row.is_image
        return vision_preface(self.template, chosen.duration if told else None, chosen.sampled)

    def _hit(self, numbers: Sequence[int]) -> list[int]:
        """Drop rows whose span no sampled frame shows.

        A faulty row stays, and loading it raises DataError.
        """
        rows_of: dict[Path, array[int]] = {}
        for number in numbers:
            row, _ = self._rows.parse(number)
            if row is not None and row.media is not None and row.span is not None:
                rows_of.setdefault(row.media, array("q")).append(number)
        missed: set[int] = set()
        for path, timeline in self.index.scan(rows_of):
            if not isinstance(timeline, str):
                missed.update(n for n in rows_of[path] if self._misses(n, timeline))
        return [number for number in numbers if number not in missed]

    def _misses(self, number: int, timeline: Timeline) -> bool:
        row = self._rows[number]
        try:
            chosen = self.sampling.choose(timeline, row.start, row.end, self._limits)
        except ArgumentError:
            return False
        return not _shown(row, chosen)


def _shown(row: Row, chosen: Chosen) -> tuple[int, ...]:
    """Numbers of the chosen frames within the row's span; () for a row without a span."""
    if row.span is None:
        return ()
    inside = (chosen.seconds >= row.span[0]) & (chosen.seconds <= row.span[1])
    return tuple(inside.nonzero().flatten().tolist())
