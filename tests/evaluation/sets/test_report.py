"""Scores against counts done by hand."""

from __future__ import annotations

import pytest

from tests.evaluation.sets.common import question, sentence
from timeviper_fast.evaluation.score import Score
from timeviper_fast.evaluation.sets.report import group_score, report
from timeviper_fast.evaluation.sets.row import Place


def test_micro_macro_and_groups():
    """Three rows of one task, one of another: micro 2/4, macro (1/3 + 1)/2."""
    tasks = ("count", "count", "count", "colour")
    rows = [question(id=str(i), groups={"task": (task,)}) for i, task in enumerate(tasks)]
    rows.append(question(id="4", groups={"task": ("colour",)}))
    answers = {"0": "B", "1": "A", "2": "", "3": "The answer is B"}
    found = report(rows, answers, failed=1, missing=0)
    assert {name: found[name] for name in ("questions", "answered", "failed", "missing", "unread")} == {
        "questions": 5, "answered": 4, "failed": 1, "missing": 0, "unread": 1,
    }  # fmt: skip
    strict, paper = found["rules"]["strict"], found["rules"]["paper"]
    assert strict["micro"] == Score(2, 4).to_dict()
    assert strict["macro"] == pytest.approx((1 / 3 + 1) / 2)
    assert strict["groups"]["task"] == {
        "colour": Score(1, 1).to_dict(),
        "count": Score(1, 3).to_dict(),
    }
    assert (strict["unread"], paper["unread"]) == (1, 1)
    assert paper["micro"] == Score(1, 4).to_dict()


def test_a_row_of_two_tasks_counts_in_both():
    rows = [question(groups={"task": ("entity", "reasoning")})]
    groups = report(rows, {"1": "B"}, 0, 0)["rules"]["strict"]["groups"]["task"]
    assert groups == {"entity": Score(1, 1).to_dict(), "reasoning": Score(1, 1).to_dict()}


@pytest.mark.parametrize(
    ("structure", "right", "score"),
    [
        *(
            ("relevance", "1" * n + "0" * (4 - n), s)
            for n, s in enumerate((0, 6.25, 25, 56.25, 100))
        ),
        ("relevance", "0101", 25),
        ("[1,2,3,4]", "1000", 100 / 16),
        ("[1,2,3,4]", "1100", 400 / 16),
        ("[1,2,3,4]", "1110", 900 / 16),
        ("[1,2,3,4]", "1111", 100),
        # what follows a wrong answer counts for nothing
        ("[1,2,3,4]", "0111", 0),
        ("[1,2,3,4]", "1011", 100 / 16),
        ("[1,[2,3],4]", "1000", 100 / 12),
        ("[1,[2,3],4]", "1100", 400 / 12),
        # the second of the bracket counts as its first
        ("[1,[2,3],4]", "1010", 400 / 12),
        ("[1,[2,3],4]", "1011", 400 / 12),
        ("[1,[2,3],4]", "1110", 700 / 12),
        ("[1,[2,3],4]", "1111", 100),
        ("[[1,2],3,4]", "0111", 10),
        ("[[1,2],3,4]", "1100", 20),
        ("[[1,2],3,4]", "1110", 50),
        ("[[1,2],3,4]", "1111", 100),
    ],
)
def test_groups_of_four(structure, right, score):
    assert group_score(structure, [mark == "1" for mark in right]) == pytest.approx(score)


def test_the_grouped_score_leaves_incomplete_groups_out():
    rows = [
        question(
            id=f"{group}-{i}", place=Place(group, i, structure), groups={"type": (structure[:5],)}
        )
        for group, structure in (("x", "relevance"), ("y", "[1,2,3,4]"), ("z", "relevance"))
        for i in range(1, 5)
    ]
    answers = {row.id: "A" if row.id in ("x-4", "y-2") else "B" for row in rows if row.id != "z-4"}
    grouped = report(rows, answers, 1, 0)["rules"]["strict"]["grouped"]
    assert (grouped["n"], grouped["incomplete"]) == (2, 1)
    assert grouped["mean"] == pytest.approx((56.25 + 6.25) / 2)
    assert grouped["by"] == {"type": {"relev": 56.25, "[1,2,": 6.25}}


def test_spans():
    """IoUs by hand: 1, 0.5 and, without a span, 0."""
    rows = [sentence(id=str(i)) for i in range(3)]
    found = report(rows, {"0": "10 to 20", "1": "10 to 15", "2": "never"}, 0, 0)
    paper, strict = found["rules"]["paper"], found["rules"]["strict"]
    assert paper["miou"] == strict["miou"] == pytest.approx(50)
    assert [paper["recall"][f">{t}"]["right"] for t in (0.3, 0.5, 0.7)] == [2, 1, 1]
    assert [strict["recall"][f">={t}"]["right"] for t in (0.3, 0.5, 0.7)] == [2, 2, 1]
    assert paper["average"] == pytest.approx((50 + 200 / 3 + 100 / 3 + 100 / 3) / 4)
    assert (found["unread"], paper["unread"]) == (1, 1)


def test_nothing_answered_has_no_score():
    found = report([question()], {}, 1, 0)["rules"]["strict"]
    assert (found["micro"]["share"], found["macro"]) == (None, None)
    assert report([sentence()], {}, 1, 0)["rules"]["paper"]["miou"] is None
