"""Evidence against the truth: examples worked by hand, and chance against a count of all places."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import isclose

import pytest

from timeviper_fast.evaluation.evidence_score import (
    Pointing,
    chance,
    evidence_by,
    evidence_of_line,
    evidence_score,
    judge_evidence,
    point,
    top_spans,
    true_frames,
)
from timeviper_fast.inference.evidence import Evidence


def looked(*mass, seconds=None):
    frames = len(mass)
    seconds = seconds or tuple(float(i) for i in range(frames))
    return Evidence(seconds, tuple(mass), (1,) * frames, 1.0 - sum(mass), 3)


def test_a_frame_stands_for_the_time_up_to_the_next_and_the_outer_ones_for_the_rest():
    seconds = (1.0, 3.0, 5.0, 7.0)
    assert true_frames(seconds, [(3.5, 5.0)]) == {1}
    assert true_frames(seconds, [(3.5, 5.1)]) == {1, 2}
    assert true_frames(seconds, [(0.0, 0.5), (90.0, 99.0)]) == {0, 3}
    # a moment, within a frame and on the border of two
    assert true_frames(seconds, [(4.0, 4.0)]) == {1}
    assert true_frames(seconds, [(5.0, 5.0)]) == {2}
    assert true_frames(seconds, []) == frozenset()


def test_the_span_with_the_most_attended_frame_comes_first():
    # half of the mass 0.9 is held by the frames 4 (0.25), 1 (0.2), and none else
    evidence = looked(0.1, 0.2, 0.15, 0.1, 0.25, 0.1)
    assert top_spans(evidence) == [range(4, 5), range(1, 2)]
    assert top_spans(evidence, 0.6) == [range(4, 5), range(1, 3)]
    assert top_spans(evidence, 1.0) == [range(6)]
    # mass per second counts, as in `spans`: the first frame lasts four seconds
    long = looked(0.4, 0.3, 0.2, seconds=(0.0, 4.0, 5.0))
    assert top_spans(long, 0.3) == [range(1, 2)]
    assert evidence.spans(0.6) == ((1.0, 3.0), (4.0, 5.0))
    assert top_spans(looked(0.0, 0.0)) == []


@pytest.mark.parametrize("width", [1, 2, 3, 7])
@pytest.mark.parametrize("true", [set(), {0}, {3}, {6}, {0, 6}, {2, 3}, set(range(7))])
def test_chance_equals_a_count_of_all_places(true, width):
    places = [range(start, start + width) for start in range(7 - width + 1)]
    touching = sum(bool(true.intersection(place)) for place in places)
    assert isclose(chance(7, true, width), touching / len(places), abs_tol=1e-15)


def test_a_hit_by_hand():
    # half of the mass 0.8 lies on the frames 2 (0.25) and 5 (0.15); the truth is 5 and 6
    evidence = looked(0.1, 0.05, 0.25, 0.05, 0.05, 0.15, 0.1, 0.05)
    found = point(evidence, {5, 6})
    assert (found.top1, found.top3) == (False, True)
    assert found.mass == pytest.approx(0.25 / 0.8)
    # one frame of eight: 2/8; two such spans: 1 - (6/8)^2; an even mass: 2/8
    assert found.by_chance == pytest.approx((0.25, 1 - 0.75**2, 0.25))
    assert point(evidence, {2}).top1
    # no masses: no span, so neither a hit nor a chance of one
    assert point(looked(0.0, 0.0), {1}) == Pointing(False, False, 0.0, (0.0, 0.0, 0.5))


def test_what_draws_attention_whatever_is_asked_is_no_hit_above_the_control():
    """Frame 0 is a sink. The question adds attention to frame 3 alone."""
    control = looked(0.4, 0.2, 0.1, 0.1)
    # shares of the video's mass: control 1/2 1/4 1/8 1/8, question 1/2 1/8 1/8 1/4
    question = looked(0.2, 0.05, 0.05, 0.1)
    judged = judge_evidence(question, control, {3})
    assert {name: one.top1 for name, one in judged.items()} == {
        "question": False,
        "control": False,
        "above control": True,
    }
    assert judged["question"].mass == pytest.approx(1 / 4)
    assert judged["control"].mass == pytest.approx(1 / 8)
    # only frame 3 has more than before
    assert judged["above control"].mass == pytest.approx(1)
    # a question that looks where the neutral one does has nothing above it
    same = judge_evidence(control, control, {0})
    assert (same["question"].top1, same["above control"].top1) == (True, False)
    with pytest.raises(ValueError, match="control must be of the same 4 frames"):
        judge_evidence(question, replace(control, seconds=(0.0, 1.0, 2.0, 4.0)), {3})


def test_scores_are_counts_and_means_by_key():
    hit = Pointing(True, True, 0.5, (0.1, 0.3, 0.2))
    miss = Pointing(False, True, 0.1, (0.3, 0.5, 0.4))
    names = ("question", "control", "above control")
    one, two = dict.fromkeys(names, hit), dict.fromkeys(names, miss)
    own = evidence_score([one, two])["question"]
    assert (own["top1"]["right"], own["top1"]["n"], own["top3"]["right"]) == (1, 2, 2)
    # Wilson's interval of 1 of 2
    assert own["top1"]["interval"] == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert own["mass"] == pytest.approx(0.3)
    assert own["uniform"] == pytest.approx({"top1": 0.2, "top3": 0.4, "mass": 0.3})
    assert evidence_score([]) == {}
    lines = [("a", one), ("b", None), ("c", two)]
    groups = evidence_by(lines, lambda line: ("all", line[0]), lambda line: line[1])
    assert list(groups) == ["all", "a", "c"]
    assert groups["all"]["control"]["top1"]["n"] == 2


def test_a_line_on_disk_is_read_back():
    judged = judge_evidence(looked(0.2, 0.5), looked(0.3, 0.3), {1})
    written = {name: asdict(one) for name, one in judged.items()}
    written["question"]["by_chance"] = list(written["question"]["by_chance"])
    assert evidence_of_line(written) == judged
    assert evidence_of_line(None) is None
