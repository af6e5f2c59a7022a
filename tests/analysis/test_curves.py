"""Likelihoods against decoding, and curves whose ends are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.random_model import tiny_model
from timeviper_fast.analysis import curves
from timeviper_fast.analysis.blocking import Blocking, blocked
from timeviper_fast.analysis.curves import (
    Curve,
    Example,
    Measure,
    answer_log_likelihood,
    blocking_curve,
    measure,
    redundancy_curve,
)
from timeviper_fast.errors import ArgumentError
from timeviper_fast.evaluation.sets.answers import iou
from timeviper_fast.inference.generate import decode
from timeviper_fast.inference.request import Question
from timeviper_fast.inference.session import Session

ASKED = "What is it?"
OPTIONS = {"max_new_tokens": 2, "stages": ()}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def video():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 48, 48, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("rows", [None, ("instruction",), ("response",)])
def test_likelihood_is_that_of_the_decoded_tokens(model, video, rows):
    """Decoding sees one token at a time, the likelihood all of the answer at once."""
    if rows is not None:
        model = blocked(model, Blocking(rows, 1, "absent"))
    session = model.open(video)
    logits: list[torch.Tensor] = []
    read = session.read(Question(ASKED, 5))
    steps = decode(model.backbone, read, max_new_tokens=5, on_logits=logits.append)
    ids = [int(token) for token in steps]
    logs = torch.stack(logits)[:, 0].double().log_softmax(-1)
    want = float(logs[torch.arange(5), ids].sum())
    assert answer_log_likelihood(session, ASKED, ids) == pytest.approx(want, abs=1e-4)


def test_a_session_of_a_view_is_blocked_and_the_model_s_own_is_not(model, video):
    """A later question to the plain model gives the same answer as before the view was made."""
    plain = model.open(video)
    before = answer_log_likelihood(plain, ASKED, [65, 66])
    view = blocked(model, Blocking(("instruction", "response"), 0, "absent"))
    other = torch.flip(video, (0,)).bitwise_not()
    seen = [answer_log_likelihood(view.open(one), ASKED, [65, 66]) for one in (video, other)]
    assert seen[0] == seen[1] != before
    assert answer_log_likelihood(plain, ASKED, [65, 66]) == before
    assert (
        view.ask(video, ASKED, max_new_tokens=3).text
        == view.ask(other, ASKED, max_new_tokens=3).text
    )


@pytest.mark.parametrize("bounded", [None, "window:5s"])
def test_a_stream_through_a_view_is_its_video_or_is_refused(model, bounded):
    """What a bounded stream has forgotten is not marked as vision any more."""
    generator = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (24, 48, 48, 3), generator=generator, dtype=torch.uint8)
    view = blocked(model, Blocking(("instruction", "response"), 0, "absent"))
    stream = view.stream(chunk=16, frame_batch=2, bounded=bounded)
    if bounded is None:
        stream.push(video)
        want = answer_log_likelihood(view.open(video), ASKED, [65, 66])
        assert answer_log_likelihood(stream.now(), ASKED, [65, 66]) == pytest.approx(want, abs=1e-4)
    else:
        with pytest.raises(NotImplementedError, match="video must keep all that it has read"):
            stream.push(video)


def test_a_list_of_questions_and_a_chat_go_through_a_view(model, video, monkeypatch):
    """Whatever lies in memory that was never written: here NaN."""
    view = blocked(model, Blocking(("response",), 2, "edge"))
    session = view.open(video)
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(x):
        return x.fill_(math.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    texts = [session.ask(one, max_new_tokens=4).text for one in (ASKED, "Why is it so?")]
    assert [a.text for a in session.ask([ASKED, "Why is it so?"], max_new_tokens=4)] == texts
    chat = session.chat()
    assert chat.ask(ASKED, max_new_tokens=4).text == texts[0]
    chat.ask("And then?", max_new_tokens=4)


def test_a_session_that_another_model_opened_is_refused(model, video, tmp_path):
    session = model.open(video)
    session.save(tmp_path / "plain.session")
    view = blocked(model, Blocking())
    with pytest.raises(ArgumentError, match="session must be read by the blocked model alone"):
        view.load_session(tmp_path / "plain.session").ask(ASKED, max_new_tokens=1)
    # its second states would be lost
    stream = view.stream(chunk=16, frame_batch=2)
    stream.push(video)
    for read in (view.open(video), stream):
        with pytest.raises(ArgumentError, match="model must be one in which nothing is blocked"):
            read.save(tmp_path / "view")
    assert [path.name for path in tmp_path.iterdir()] == ["plain.session"]


def test_what_cannot_be_scored_is_named(model, video):
    session = model.open(video)
    with pytest.raises(ArgumentError, match="answer_ids must hold a token or more"):
        answer_log_likelihood(session, ASKED, [])
    with pytest.raises(ArgumentError, match="examples must hold an example or more"):
        measure(model, [])


def test_a_video_is_opened_once_for_the_examples_in_a_row(model, video, monkeypatch):
    opened = []
    plain = type(model).open
    monkeypatch.setattr(
        type(model), "open", lambda self, *a, **k: opened.append(1) or plain(self, *a, **k)
    )
    examples = [
        Example(video, ASKED, "A"),
        Example(video, "Why?", "B"),
        Example(video.clone(), ASKED, "A"),
    ]
    told = []
    found = measure(
        model, examples, max_new_tokens=1, judge=lambda answer, truth: truth == "A",
        progress=lambda *given: told.append(given),
    )  # fmt: skip
    assert (len(opened), found.right, found.n, found.accuracy) == (2, 2, 3, pytest.approx(2 / 3))
    assert told[-1] == ("questions", 3, 3)
    assert found.per_token == pytest.approx(found.log_likelihood)


def test_overlaps_with_true_spans_become_a_mean_overlap(model, video, monkeypatch):
    """A model that answers "2 to 6" whatever it is asked: IoU 2 / 6 with 4 .. 8, and 1."""
    monkeypatch.setattr(
        Session, "ask", lambda *_, **options: SimpleNamespace(text=f"{options['answer_prefix']}6")
    )
    examples = [
        Example(video, "When does it move?", truth, answer_prefix="2 to ")
        for truth in ("4 to 8", "2 to 6")
    ]

    def overlap(answer: str, truth: str) -> float:
        said, true = (tuple(map(float, text.split(" to "))) for text in (answer, truth))
        return iou(said, true)

    options = {"judge": overlap, "max_new_tokens": 1}
    curve = blocking_curve(model, examples, Blocking(), layers=(0,), **options)
    for found in (curve.whole, *curve.points):
        assert found.right == pytest.approx(4 / 3)
        assert found.to_dict()["accuracy"] == pytest.approx(2 / 3)


def test_a_share_that_is_dropped_leaves_the_rest(model, video, monkeypatch):
    """In float64 1 - 0.9 is below 0.1, which would leave 24 of 250."""
    stages = []

    def measured(*_, **options):
        stages.extend(options["stages"])
        return Measure(0.0, 1, 0.0, 0.0)

    monkeypatch.setattr(curves, "measure", measured)
    drops = (0.1, 0.5, 0.7, 0.9, 0.99)
    redundancy_curve(model, [Example(video, ASKED, "A")], "uniform", drops=drops, layers=(2,))
    assert [stage.kept_count(1000) for stage in stages] == [900, 500, 300, 100, 10]
    assert [stage.kept_count(250) for stage in stages[1::2]] == [125, 25]


def test_by_default_a_stage_stands_wherever_it_can(model, video, monkeypatch):
    monkeypatch.setattr(curves, "measure", lambda *_, **__: Measure(0.0, 1, 0.0, 0.0))
    pattern, found = model.config.backbone.pattern, {}
    for select in ("uniform", "attention"):
        curve = redundancy_curve(model, [Example(video, ASKED, "A")], select, drops=(0.5,))
        found[select] = [point.layer for point in curve.points]
    assert found["uniform"] == [*range(len(pattern))]
    assert found["attention"] == [i for i, kind in enumerate(pattern) if kind == "*"]


def test_a_curve_keeps_the_blocking_but_for_its_layer(model, video, monkeypatch):
    monkeypatch.setattr(curves, "measure", lambda *_, **__: Measure(0.0, 1, 0.0, 0.0))
    made = []
    monkeypatch.setattr(curves, "blocked", lambda _, blocking: made.append(blocking))
    given = Blocking(("response",), 4, "edge+conv", transfer=False)
    blocking_curve(model, [Example(video, ASKED, "A")], given, layers=(1, 2))
    assert made == [replace(given, from_layer=layer) for layer in (1, 2)]


def test_an_exact_match_reads_past_case_spaces_and_a_full_stop(model, video, monkeypatch):
    told = iter([" A square. ", "a circle"])
    monkeypatch.setattr(Session, "ask", lambda *_, **__: SimpleNamespace(text=next(told)))
    assert measure(model, [Example(video, ASKED, "a Square")] * 2).right == 1


def test_a_reference_answer_stands_behind_its_prefix(model, video):
    session = model.open(video)
    for prefix in ("", "It is "):
        want = answer_log_likelihood(session, ASKED, [65], answer_prefix=prefix)
        example = Example(video, ASKED, "A", answer_prefix=prefix)
        found = measure(model, [example], max_new_tokens=1)
        assert found.log_likelihood == pytest.approx(want, abs=1e-4)
        assert prefix or want != answer_log_likelihood(session, ASKED, [65], answer_prefix="It is ")


def test_a_blocking_curve_ends_at_the_whole_model(model, video):
    layers = len(model.backbone.layers)
    curve = blocking_curve(
        model,
        [Example(video, ASKED, "AB")],
        Blocking(grade="absent"),
        layers=(0, layers),
        **OPTIONS,
    )
    first, last = curve.points
    assert first.log_likelihood != curve.whole.log_likelihood
    assert last.log_likelihood == curve.whole.log_likelihood
    assert (first.layer, last.layer, curve.whole.layer) == (0, layers, None)
    assert curve.settings == {
        "kind": "blocking", "rows": ["instruction"], "grade": "absent", "transfer": True,
    }  # fmt: skip
    assert json.loads(json.dumps(curve.to_dict()))["points"][1]["layer"] == layers


def test_a_redundancy_curve_begins_at_the_whole_model(model, video):
    examples = [Example(video, ASKED, "AB")]
    stagely = {"drops": (0.0, 0.75), "max_new_tokens": 2}
    for select in ("uniform", "attention"):
        curve = redundancy_curve(model, examples, select, layers=(8,), **stagely)
        none, most = curve.points
        assert none.log_likelihood == pytest.approx(curve.whole.log_likelihood, abs=1e-4)
        assert most.log_likelihood != none.log_likelihood
        assert (most.layer, most.drop) == (8, 0.75)
        assert isinstance(curve, Curve)
        assert curve.settings["select"] == select
    assert math.isfinite(most.per_token)
