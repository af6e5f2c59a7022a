"""Whether evidence lies where the truth is: hit rates, beside chance and a neutral question."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, prod
from statistics import fmean
from typing import Any, TypeVar

from timeviper_fast.evaluation.score import Score
from timeviper_fast.inference.evidence import Evidence

__all__ = [
    "READINGS",
    "SHARE",
    "Pointing",
    "chance",
    "evidence_by",
    "evidence_of_line",
    "evidence_score",
    "judge_evidence",
    "point",
    "top_spans",
    "true_frames",
]

SHARE = 0.5
READINGS = {
    "question": "the masses of the question",
    "control": "those of the neutral question",
    "above control": "what the question's share of a frame exceeds the neutral question's by",
}
Judged = Mapping[str, "Pointing"]
_Line = TypeVar("_Line")
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Pointing:
    """Where the masses of one question point.

    Attributes:
        top1: whether the first of `top_spans` touches the truth.
        top3: whether one of the first three does.
        mass: share of the video's mass on the true frames.
        by_chance: what random spans of the same lengths, and an even mass, would give for the
            three: two probabilities and a share, exact.
    """

    top1: bool
    top3: bool
    mass: float
    by_chance: tuple[float, float, float]


def true_frames(seconds: Sequence[float], spans: Iterable[tuple[float, float]]) -> frozenset[int]:
    """The frames that are shown within the true spans.

    A frame is shown until the next one. The first one also stands for the time in front of it, and
    the last one for all time behind it, so that each span has a frame.

    Args:
        seconds: (frames,) ascending, as in `Evidence`.
        spans: (start, end) in seconds. Equal ones are a moment.
    """
    starts = [-inf, *seconds[1:]]
    ends = [*seconds[1:], inf]
    return frozenset(
        frame
        for start, end in spans
        for frame, (a, b) in enumerate(zip(starts, ends))
        if (a < end and start < b) or a <= start == end < b
    )


def top_spans(evidence: Evidence, share: float = SHARE) -> list[range]:
    """The spans of `evidence.spans(share)` as frame numbers.

    The one with the most attended frame (by mass per second) comes first.
    """
    order = evidence.frames(share)
    rank = {frame: place for place, frame in enumerate(order)}
    runs: list[range] = []
    for frame in sorted(order):
        first = runs.pop().start if runs and runs[-1].stop == frame else frame
        runs.append(range(first, frame + 1))
    return sorted(runs, key=lambda run: min(rank[frame] for frame in run))


def chance(frames: int, true: Collection[int], width: int) -> float:
    """Probability that a span of `width` frames touches a true one, if each place is as likely.

    The places are those within the video: frames - width + 1. Those that miss lie between two
    neighbouring true frames, or between one and an end of the video.
    """
    walls = [-1, *sorted(true), frames]
    misses = sum(max(0, b - a - width) for a, b in pairwise(walls))
    return 1 - misses / (frames - width + 1)


def point(evidence: Evidence, true: Collection[int], share: float = SHARE) -> Pointing:
    """Compare masses with the true frames. Masses of 0 point nowhere: no hit, and no chance."""
    frames = len(evidence.mass)
    first = top_spans(evidence, share)[:3]
    hits = [any(frame in true for frame in span) for span in first]
    missed = [1 - chance(frames, true, len(span)) for span in first]
    mass = sum(evidence.mass[frame] for frame in true) / (evidence.vision_mass or 1.0)
    by_chance = (1 - prod(missed[:1]), 1 - prod(missed), len(true) / frames)
    return Pointing(any(hits[:1]), any(hits), mass, by_chance)


def judge_evidence(
    evidence: Evidence, control: Evidence, true: Collection[int]
) -> dict[str, Pointing]:
    """`point` for each of READINGS.

    Args:
        evidence: of a question.
        control: of a neutral question about the same video.
        true: numbers of the frames that show the answer.
    """
    both = evidence.against(control)
    own, other = both.vision_mass or 1.0, control.vision_mass or 1.0
    above = (max(a / own - b / other, 0.0) for a, b in zip(both.mass, control.mass))
    read = (evidence, control, replace(evidence, mass=tuple(above)))
    return {name: point(masses, true) for name, masses in zip(READINGS, read)}


def evidence_score(judged: Sequence[Judged]) -> dict[str, Any]:
    """The scores of several questions, in plain types for JSON.

    Returns:
        For each of READINGS "top1" and "top3" (counts with interval), "mass" (a mean share), and
        "uniform" with the means of what chance gives for the three.
    """
    found: dict[str, Any] = {}
    for name in READINGS if judged else ():
        own = [one[name] for one in judged]
        means = (fmean(values) for values in zip(*(each.by_chance for each in own)))
        found[name] = {
            "top1": Score(sum(each.top1 for each in own), len(own)).to_dict(),
            "top3": Score(sum(each.top3 for each in own), len(own)).to_dict(),
            "mass": fmean(each.mass for each in own),
            "uniform": dict(zip(("top1", "top3", "mass"), means)),
        }
    return found


def evidence_by(
    lines: Iterable[_Line],
    key: Callable[[_Line], Iterable[_Key]],
    judged: Callable[[_Line], Judged | None],
) -> dict[_Key, dict[str, Any]]:
    """`evidence_score` of the judged lines for each key; a line with two keys counts in both."""
    groups: dict[_Key, list[Judged]] = {}
    for line in lines:
        if (one := judged(line)) is not None:
            for name in key(line):
                groups.setdefault(name, []).append(one)
    return {name: evidence_score(own) for name, own in groups.items()}


def evidence_of_line(fields: Mapping[str, Any] | None) -> dict[str, Pointing] | None:
    """What a JSON line holds of `judge_evidence`."""
    if fields is None:
        return None
    return {
        name: Pointing(**{**own, "by_chance": tuple(own["by_chance"])})
        for name, own in fields.items()
    }
