"""Long samples made of short ones: clips of several rows one behind the other.

The question is about one of the clips; a sentence behind the vision says which one, by its number
and by its seconds. Drawn numbers of clips and places make every length and depth.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

import torch

from timeviper_fast.dataset.conversation import ConversationSource, View
from timeviper_fast.dataset.frames import Chosen
from timeviper_fast.dataset.randomness import hash63, permuted
from timeviper_fast.dataset.rows import Row
from timeviper_fast.dataset.sample import Cost, Draw, Limits, Sample
from timeviper_fast.errors import ArgumentError, DataError, fail, is_integer
from timeviper_fast.text.prompt import video_sentence

__all__ = ["JoinedSource"]

# Rows that are tried per clip. Rows of one video count once, since "clip 2" must name one picture.
_TRIES = 8


class _Join(NamedTuple):
    """The clips of a sample in their order, and which one the question is about.

    Attributes:
        rows: drawable rows of the source, one per clip.
        chosen: the frames of each.
        asked: the place of the asked clip.
        source: the source, with each clip's share of the frames as its limits.
    """

    rows: tuple[Row, ...]
    chosen: tuple[Chosen, ...]
    asked: int
    source: ConversationSource

    @property
    def starts(self) -> list[float]:
        """The second at which each clip begins, and the end of the last."""
        return [0.0, *accumulate(chosen.duration for chosen in self.chosen)]

    @property
    def frames(self) -> int:
        return sum(len(chosen.positions) for chosen in self.chosen)


class JoinedSource:
    """Samples that join a row's video with those of other rows of the same source; a `Source`.

    Args:
        source: its rows with a video are joined; each is asked about once per epoch. A source of
            kind "grounding" is refused: times in its answers count from the beginning of a clip.
        clips: fewest and most clips of a sample; there are fewer where fewer fit the limits, or
            where the source has too few videos.
        name: how error messages, mixtures and metrics call it; "SOURCE-joined" by default.

    Raises:
        ValueError: an argument breaks its rule.
    """

    def __init__(
        self, source: ConversationSource, clips: tuple[int, int] = (2, 8), name: str = ""
    ) -> None:
        low_high = isinstance(clips, tuple) and len(clips) == 2 and all(map(is_integer, clips))
        if not (low_high and 2 <= clips[0] <= clips[1]):
            fail("JoinedSource", "clips", "be a tuple (low, high) with 2 <= low <= high", clips)
        if source.kind in ("grounding", "text"):
            rule = "be of a kind whose answers name no times and need a video"
            fail("JoinedSource", "source", rule, source.kind)
        self.name, self.clips = name or f"{source.name}-joined", clips
        self._source, self._limits = source, Limits(max_frames=max(64, 2 * source.sampling.unit))
        self._drawable: Sequence[int] | None = None

    def limits(self, limits: Limits) -> JoinedSource:
        """The same rows within other limits, which hold for all clips of a sample together.

        Raises:
            ArgumentError: not two clips fit.
        """
        least = 2 * self._source.sampling.unit
        if limits.max_frames < least:
            rule = f"allow two clips of {self._source.sampling.unit} frames"
            raise ArgumentError("Limits", "max_frames", rule, limits.max_frames)
        other = JoinedSource(self._source, self.clips, self.name)
        other._limits, other._drawable = limits, self._drawable
        return other

    def __len__(self) -> int:
        return len(self._rows)

    def cost(self, index: int, draw: Draw) -> Cost:
        """Frames and text tokens of a sample, without decoding.

        Raises:
            DataError: a row breaks a rule, or a video cannot be opened.
        """
        inner = self._rows[index]
        with self._source.naming(inner):
            join = self._join(index, draw)
            row = join.rows[join.asked]
            messages = join.source.messages(row, draw)
            text = join.source.text_tokens(messages, self._preface(join), row.placeholder)
            return Cost(join.frames, text)

    def load(self, index: int, draw: Draw) -> Sample:
        """The sample: all frames of its clips, and the conversation about one of them.

        Raises:
            DataError: a row breaks a rule, or a video cannot be read.
        """
        inner = self._rows[index]
        with self._source.naming(inner):
            join = self._join(index, draw)
            row = join.rows[join.asked]
            view = _seen(join)
            return Sample(
                join.source.messages(row, draw),
                *view[:2],
                preface=self._preface(join),
                placeholder=row.placeholder,
                needed=_needed(join),
                seconds=tuple(_seconds(join)),
                name=f"{self.name}:{self._source.rows[inner]}",
                parts=view.parts,
            )

    @property
    def _rows(self) -> Sequence[int]:
        """Places among the source's drawable rows that have a video. A faulty row stays: it is said
        where it is drawn."""
        if self._drawable is None:
            self._drawable = array("q", filter(self._has_video, range(len(self._source))))
        return self._drawable

    def _has_video(self, inner: int) -> bool:
        try:
            row = self._source.row(inner)
        except DataError:
            return True
        return row.media is not None and not row.is_image

    def _join(self, index: int, draw: Draw) -> _Join:
        random = Random(hash63(draw.seed, "clips"))
        most = min(self.clips[1], self._limits.max_frames // self._source.sampling.unit)
        count = random.randint(min(self.clips[0], most), most)
        own = self._source.row(self._rows[index])
        rows = [own]
        for row in self._others(index, draw, count):
            if row.media not in {known.media for known in rows}:
                rows.append(row)
            if len(rows) == count:
                break
        if len(rows) < 2:
            raise DataError(self.name, "its rows must have two videos or more to join, got one")
        most = self._limits.max_frames // len(rows)
        least = min(-(-self._limits.min_frames // len(rows)), most)
        share = Limits(least, most, self._limits.image_size)
        source, asked = self._source.limits(share), random.randrange(len(rows))
        rows[0], rows[asked] = rows[asked], rows[0]
        chosen = tuple(
            source.choose(row, Draw(draw.source, draw.index, hash63(draw.seed, i)))
            for i, row in enumerate(rows)
        )
        return _Join(tuple(rows), chosen, asked, source)

    def _others(self, index: int, draw: Draw, count: int) -> Iterator[Row]:
        """Other rows in a drawn order, each once."""
        length = len(self._rows)
        for i in range(min(length, _TRIES * count)):
            other = permuted(i, length, draw.seed, "others")
            if other != index:
                yield self._source.row(self._rows[other])

    def _preface(self, join: _Join) -> str:
        starts, number = join.starts, join.asked
        told = sum(chosen.sampled for chosen in join.chosen)
        lasts = video_sentence(starts[-1], told) if self._source.mention_duration else ""
        return (
            f"{lasts}The video is made of {len(join.rows)} clips, one behind the other. "
            f"The question is about clip {number + 1}, "
            f"from {starts[number]:.2f} to {starts[number + 1]:.2f} seconds. "
        )


def _seen(join: _Join) -> View:
    """Pixels of all clips, or the features of all where each is kept."""
    views: list[View] = []
    for row, chosen in zip(join.rows, join.chosen):
        if row.media is not None:
            views.append(join.source.see(row.media, chosen))
    parts = tuple(part for view in views for part in view.parts)
    features = [view.features for view in views if view.features is not None]
    if len(features) == len(views):
        return View(None, torch.cat(features), parts)
    pixels = []
    for row, chosen, view in zip(join.rows, join.chosen, views):
        if view.pixels is None and row.media is not None:
            view = join.source.see(row.media, chosen, cached=False)
        if view.pixels is not None:
            pixels.append(view.pixels)
    return View(torch.cat(pixels), None, parts)


def _needed(join: _Join) -> tuple[int, ...]:
    """The frames of the asked clip; those of its span where the row has one."""
    first = sum(len(chosen.positions) for chosen in join.chosen[: join.asked])
    chosen, span = join.chosen[join.asked], join.rows[join.asked].span
    numbers = range(len(chosen.positions))
    seconds = chosen.seconds.tolist()
    hit = [i for i in numbers if span and span[0] <= seconds[i] <= span[1]]
    return tuple(first + i for i in hit or numbers)


def _seconds(join: _Join) -> Iterator[float]:
    for start, chosen in zip(join.starts, join.chosen):
        yield from (chosen.seconds - chosen.start + start).tolist()
