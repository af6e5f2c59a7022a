"""Long samples made of short ones: the videos of several rows one after the other.

The question is about one of the clips. A sentence after the vision tokens names it by its number
and its seconds. The number of clips and the place of the asked one are random, so samples cover all
lengths and depths.
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
from timeviper_fast.text.prompt import vision_preface

__all__ = ["JoinedSource"]

# Draw at most 8 rows per clip to find different videos: "clip 2" must name a single video.
_TRIES = 8


class _Join(NamedTuple):
    """The clips of a sample in their order, and which one the question is about.

    Attributes:
        rows: drawable rows of the source, one for each clip.
        chosen: the frames of each clip.
        asked: the index of the clip that the question is about.
        source: the source; its limits are each clip's share of the frames.
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
        source: its rows with a video are joined, and each row's question is asked once per epoch.
            A source of kind "grounding" is refused, because the times in its answers count from the
            beginning of a clip.
        clips: fewest and most clips of a sample. A sample has fewer if fewer fit the limits or the
            source has too few videos.
        name: its name in error messages, mixtures and metrics; "SOURCE-joined" by default.

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
        """The same rows within other limits, which apply to the sum of a sample's clips.

        Raises:
            ArgumentError: the limits allow fewer than two clips.
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
        """Indices of the source's drawable rows that have a video.

        A faulty row stays, and loading it raises DataError.
        """
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
        """Other rows in a random order, each at most once."""
        length = len(self._rows)
        for i in range(min(length, _TRIES * count)):
            other = permuted(i, length, draw.seed, "others")
            if other != index:
                yield self._source.row(self._rows[other])

    def _preface(self, join: _Join) -> str:
        starts, number = join.starts, join.asked
        told = sum(chosen.sampled for chosen in join.chosen)
        source = self._source
        seconds = starts[-1] if source.mention_duration else None
        lasts = vision_preface(source.template, seconds, told)
        return (
            f"{lasts}The video is made of {len(join.rows)} clips, one behind the other. "
            f"The question is about clip {number + 1}, "
            f"from {starts[number]:.2f} to {starts[number + 1]:.2f} seconds. "
        )


def _seen(join: _Join) -> View:
    """The pixels of all clips, or their features if those of every clip are cached."""
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
    """The frames of the asked clip, or of its span if the row has one."""
    first = sum(len(chosen.positions) for chosen in join.chosen[: join.asked])
    chosen, span = join.chosen[join.asked], join.rows[join.asked].span
    numbers = range(len(chosen.positions))
    seconds = chosen.seconds.tolist()
    hit = [i for i in numbers if span and span[0] <= seconds[i] <= span[1]]
    return tuple(first + i for i in hit or numbers)


def _seconds(join: _Join) -> Iterator[float]:
    for start, chosen in zip(join.starts, join.chosen):
        yield from (chosen.seconds - chosen.start + start).tolist()
