"""Where the model looked when it chose what to keep for a question.

A stage that selects by attention scores every vision token that reaches it: the softmax over all
keys, text included, averaged over the heads. The sum over a frame's tokens is the frame's mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from timeviper_fast.errors import ArgumentError, fail, is_number
from timeviper_fast.model.transv import StageRecord

__all__ = ["Evidence", "collect_evidence", "evidence_of"]


@dataclass(frozen=True)
class Evidence:
    """The attention of a question's last token to each frame, at the asking stage.

    May be said: when the model chose what to keep for this question, it looked here. May not be
    said: the answer comes from here. The layers in front of the stage have written all of the video
    into the text already, the transfer adds what was dropped, and some tokens draw attention
    whatever is asked. Compare with `control`, the masses for a neutral question: a frame that
    stands out there too says nothing about this question.

    Where frames are encoded or merged in clips, a token holds patches of its whole clip: then one
    entry stands for one clip, and its second is that of the clip's middle frame.

    The masses and `text_mass` add up to 1 within rounding, and `kept` adds up to the vision tokens
    behind the last stage.

    Attributes:
        seconds: of each frame, ascending.
        mass: attention to each frame's tokens.
        kept: tokens of each frame that the last layers saw.
        text_mass: attention to the text, in front of the video, between frames and behind.
        layer: the asking stage stands before this layer.
        clip_frames: frames that one entry stands for.
        control: `mass` for a neutral question, if that was asked.
    """

    seconds: tuple[float, ...]
    mass: tuple[float, ...]
    kept: tuple[int, ...]
    text_mass: float
    layer: int
    clip_frames: int = 1
    control: tuple[float, ...] | None = None

    @property
    def edges(self) -> tuple[float, ...]:
        """Where each frame's seconds begin, and where the last one's end: it lasts as long as the
        one before it, and a single frame no time."""
        gaps = [b - a for a, b in zip(self.seconds, self.seconds[1:])]
        return (*self.seconds, self.seconds[-1] + (gaps[-1] if gaps else 0.0))

    @property
    def vision_mass(self) -> float:
        """Attention to all of the video."""
        return sum(self.mass)

    @property
    def ratio(self) -> tuple[float, ...] | None:
        """Each frame's share of the video's mass, over that for the neutral question.

        1 where both are 0, infinity where only the latter is; None without a control.
        """
        if self.control is None:
            return None
        own, other = self.vision_mass or 1.0, sum(self.control) or 1.0
        pairs = ((mass / own, control / other) for mass, control in zip(self.mass, self.control))
        return tuple(a / b if b else (inf if a else 1.0) for a, b in pairs)

    def against(self, control: Evidence) -> Evidence:
        """This evidence with the masses of a neutral question about the same video beside it."""
        if control.seconds != self.seconds:
            rule = f"be of the same {len(self.seconds)} frames"
            raise ArgumentError("Evidence", "control", rule, f"{len(control.seconds)} frames")
        return replace(self, control=control.mass)

    def frames(self, share: float = 0.5) -> tuple[int, ...]:
        """Numbers of the frames in `spans`, the one with the most mass per second first.

        Raises:
            ArgumentError: of `share`: not in (0, 1].
        """
        if not (is_number(share) and 0 < share <= 1):
            fail("spans", "share", "lie in (0, 1]", share)
        lasts = [b - a for a, b in zip(self.edges, self.edges[1:])]
        density = [m / d if d else m * inf if m else 0.0 for m, d in zip(self.mass, lasts)]
        order = sorted(range(len(self.mass)), key=lambda i: (-density[i], i))
        # a sum in another order may miss the whole by its last bit
        wanted, held = share * self.vision_mass * (1 - 1e-9), 0.0
        taken = []
        for frame in order:
            if held >= wanted or not self.mass[frame]:
                break
            taken.append(frame)
            held += self.mass[frame]
        return tuple(taken)

    def spans(self, share: float = 0.5) -> tuple[tuple[float, float], ...]:
        """The shortest seconds that hold a share of the video's mass, as (start, end), in order.

        A frame stands for the seconds up to the next one, the last for as long as the one before
        it. Frames are taken by mass per second, the highest first: with frames at equal distances
        no shorter seconds hold the share. Neighbours are joined. () where no frame has mass.

        Raises:
            ArgumentError: of `share`: not in (0, 1].
        """
        lasts = [b - a for a, b in zip(self.edges, self.edges[1:])]
        spans: list[tuple[float, float]] = []
        for frame in sorted(self.frames(share)):
            start, end = self.seconds[frame], self.seconds[frame] + lasts[frame]
            if spans and start <= spans[-1][1]:
                start = spans.pop()[0]
            spans.append((start, end))
        return tuple(spans)


def evidence_of(
    scores: Tensor,
    source: Tensor,
    kept: Tensor,
    seconds: Tensor | Sequence[float],
    counts: Sequence[int],
    *,
    layer: int,
    clip_frames: int = 1,
) -> Evidence:
    """Evidence from the scores of one question.

    Args:
        scores: (n,) float32, of the vision tokens that reached the asking stage.
        source: (n,) which of the prompt's vision tokens these are, ascending.
        kept: (m,) which of the prompt's vision tokens the last layers saw, ascending.
        seconds: (frames,) of the frames that were looked at.
        counts: vision tokens of each frame. Frames beyond the last second repeat the last frame, as
            in a clip that is filled up.
        layer: the asking stage stands before it.
        clip_frames: frames that are encoded or merged together; 1 for a single image.

    Raises:
        ArgumentError: sizes that do not fit together, or a number of no vision token.
    """
    times = torch.as_tensor(seconds, dtype=torch.float64).cpu()
    scores, source, kept = (x.detach().cpu() for x in (scores, source, kept))
    total = sum(counts)
    if scores.shape != source.shape or scores.ndim != 1:
        got = f"{tuple(scores.shape)} and {tuple(source.shape)}"
        raise ArgumentError("evidence_of", "scores and source", "have one shape (n,)", got)
    for name, index in (("source", source), ("kept", kept)):
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < total:
            got = f"{int(index.min())} .. {int(index.max())}"
            raise ArgumentError("evidence_of", name, f"lie in 0 .. {total - 1}", got)
    if not 0 < len(times) <= len(counts):
        rule = f"be of 1 to {len(counts)} frames"
        raise ArgumentError("evidence_of", "seconds", rule, len(times))
    last = len(times) - 1
    frames = torch.arange(len(counts)).clamp_max(last) // clip_frames
    entry = frames.repeat_interleave(torch.tensor(counts))
    entries = last // clip_frames + 1
    mass = torch.zeros(entries, dtype=torch.float64)
    mass.index_add_(0, entry[source], scores.double())
    seen = torch.bincount(entry[kept], minlength=entries)
    first = torch.arange(entries) * clip_frames
    # the earlier one of two middle frames; repeated frames do not count
    middle = (first + (first + clip_frames - 1).clamp_max(last)) // 2
    return Evidence(
        tuple(times[middle].tolist()),
        tuple(mass.tolist()),
        tuple(seen.tolist()),
        max(1.0 - float(mass.sum()), 0.0),
        layer,
        clip_frames,
    )


def collect_evidence(
    records: Sequence[StageRecord],
    seconds: Tensor | Sequence[float],
    counts: Sequence[int],
    *,
    clip_frames: int = 1,
    row: int = 0,
) -> Evidence | None:
    """Evidence of one question from what its stages recorded; None if none selects by attention.

    Args:
        records: of every stage, in order, as `Prefill.records` has them.
        seconds, counts, clip_frames: as in `evidence_of`.
        row: of the batch.
    """
    source = torch.arange(sum(counts))
    scored: StageRecord | None = None
    asked = source
    for record in records:
        if scored is None and record.scores is not None:
            scored, asked = record, source
        source = source[record.kept[row].cpu()]
    if scored is None or scored.scores is None:
        return None
    given = (scored.scores[row], asked, source, seconds, counts)
    return evidence_of(*given, layer=scored.layer, clip_frames=clip_frames)
