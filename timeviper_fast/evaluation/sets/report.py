"""The scores of a set, by each rule of reading answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from timeviper_fast.evaluation.score import Score, tally
from timeviper_fast.evaluation.sets.answers import RULES, Rule, iou, is_unread
from timeviper_fast.evaluation.sets.row import SetRow

__all__ = ["THRESHOLDS", "group_score", "report"]

THRESHOLDS = (0.3, 0.5, 0.7)
# of a logical group: the score for 0 to 4 questions in a chain without a gap
_CHAINS = {
    "[1,2,3,4]": (0, 1 / 16, 4 / 16, 9 / 16, 1),
    "[1,[2,3],4]": (0, 1 / 12, 4 / 12, 7 / 12, 1),
    "[[1,2],3,4]": (0, 1 / 10, 2 / 10, 5 / 10, 1),
}
# the same structures as counts of questions per step
_STEPS = {"[1,2,3,4]": (1, 1, 1, 1), "[1,[2,3],4]": (1, 2, 1), "[[1,2],3,4]": (2, 1, 1)}
_Answered = Sequence[tuple[SetRow, str]]


def report(
    rows: Sequence[SetRow], answers: Mapping[str, str], failed: int, missing: int
) -> dict[str, Any]:
    """All scores, in plain types for JSON.

    Args:
        rows: the questions of the run.
        answers: {row id: text} of those that were answered; scores are over these.
        failed: rows whose video or question raised an error.
        missing: rows whose video does not exist.

    Returns:
        "questions", "answered", "failed", "missing", "unread" (answers that neither rule reads) and
        "rules": for each rule `unread` and, for options, `micro` (all rows together), `macro` (the
        mean over the tasks' shares), `groups`, and `grouped` for groups of four; for spans `miou`,
        `recall` at each of THRESHOLDS, and `average` (the mean of these four). All shares of spans
        are in percent, and an answer without a span has IoU 0.
    """
    said = [(row, answers[row.id]) for row in rows if row.id in answers]
    score = _choices if rows[0].options else _spans
    return {
        "set": rows[0].set,
        "questions": len(rows),
        "answered": len(said),
        "failed": failed,
        "missing": missing,
        "unread": sum(is_unread(text, row) for row, text in said),
        "rules": {name: score(said, rule) for name, rule in RULES.items()},
    }


def group_score(structure: str, right: Sequence[bool]) -> float:
    """The score of four questions of Video-MME-v2 that belong together, 0 to 100.

    Args:
        structure: "relevance": the squared share of right answers. Else a chain: it counts from the
            first question on to the first wrong one. Two questions in brackets are one step: if one
            of them is right, the chain has one more and ends.
        right: of questions 1 to 4.
    """
    if structure == "relevance":
        return 100 * (sum(right) / len(right)) ** 2
    chain, first = 0, 0
    for size in _STEPS[structure]:
        step = sum(right[first : first + size])
        chain, first = chain + step, first + size
        if step < size:
            break
    return 100 * _CHAINS[structure][chain]


def _choices(said: _Answered, rule: Rule) -> dict[str, Any]:
    read = [(row, rule.read(text, row)) for row, text in said]
    judged = [(row, letter == row.answer) for row, letter in read]
    groups = {name: _of_group(judged, name) for name in dict.fromkeys(_names(said))}
    tasks = groups.get("task", {})
    found = {
        "unread": sum(letter is None for _, letter in read),
        "micro": Score(sum(right for _, right in judged), len(judged)).to_dict(),
        "macro": fmean(score.share for score in tasks.values()) if tasks else None,
        "groups": {
            name: {value: score.to_dict() for value, score in sorted(values.items())}
            for name, values in groups.items()
        },
    }
    return found | ({"grouped": _grouped(judged)} if any(row.place for row, _ in said) else {})


def _names(said: _Answered) -> Iterable[str]:
    return (name for row, _ in said for name in row.groups)


def _of_group(judged: Sequence[tuple[SetRow, bool]], name: str) -> dict[str, Score]:
    """The scores of each value of a property; a row with two values counts in both."""
    each = [(value, right) for row, right in judged for value in row.groups.get(name, ())]
    return tally(each, lambda pair: pair[0], lambda pair: Score(int(pair[1]), 1))


def _grouped(judged: Sequence[tuple[SetRow, bool]]) -> dict[str, Any]:
    """The mean over groups of which all four questions are answered; overall, by type and level."""
    groups: dict[str, dict[int, tuple[SetRow, bool]]] = {}
    for row, right in judged:
        if row.place:
            groups.setdefault(row.place.group, {})[row.place.number] = (row, right)
    whole = [sorted(group.items()) for group in groups.values() if len(group) == 4]
    scores: dict[str, dict[str, list[float]]] = {}
    for group in whole:
        first = group[0][1][0]
        assert first.place is not None
        score = group_score(first.place.structure, [right for _, (_, right) in group])
        for name, values in {**first.groups, "all": ("all",)}.items():
            scores.setdefault(name, {}).setdefault(values[0], []).append(score)
    means = {n: {value: fmean(own) for value, own in by.items()} for n, by in scores.items()}
    overall = means.pop("all", {}).get("all")
    return {"mean": overall, "n": len(whole), "incomplete": len(groups) - len(whole), "by": means}


def _spans(said: _Answered, rule: Rule) -> dict[str, Any]:
    read = [(row, rule.read(text, row)) for row, text in said]
    overlaps = [iou(span, row.answer) for row, span in read]  # type: ignore[arg-type]
    recall = {
        t: Score(sum(rule.reaches(o, t) for o in overlaps), len(overlaps)) for t in THRESHOLDS
    }
    miou = 100 * fmean(overlaps) if overlaps else None
    shares = [100 * score.share for score in recall.values()]
    return {
        "unread": sum(span is None for _, span in read),
        "miou": miou,
        "recall": {f"{rule.sign}{t:g}": score.to_dict() for t, score in recall.items()},
        "average": None if miou is None else fmean([miou, *shares]),
    }
