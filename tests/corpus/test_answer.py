"""From a row to its record, and what two runs share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.corpus.common import OPTIONS, rows, worker
from tests.random_model import tiny_model
from timeviper_fast.corpus.answer import answered, settings_of
from timeviper_fast.errors import ArgumentError


@pytest.fixture
def asked(tmp_path):
    return rows(tmp_path)


def test_settings_tell_runs_apart_that_answer_differently(tmp_path):
    model = tiny_model()
    own = settings_of(model, OPTIONS)
    assert settings_of(tiny_model(), OPTIONS) == own
    options = [
        replace(OPTIONS, opening=replace(OPTIONS.opening, **change))
        for change in ({"policy": "fps:2"}, {"chunk": 32}, {"stages": "none"}, {"on_error": "use"})
    ]
    others = [settings_of(model, one) for one in (*options, replace(OPTIONS, max_new_tokens=9))]
    other_weights = tiny_model()
    next(other_weights.parameters()).data += 1
    others.append(settings_of(other_weights, OPTIONS))
    assert all(other != own for other in others)
    with pytest.raises(ArgumentError, match="start must be left out: each row has its own"):
        replace(OPTIONS, opening=replace(OPTIONS.opening, start=3))


def test_the_error_of_a_video_names_no_folder(tmp_path, asked):
    record = answered(worker(tmp_path / "out").model, asked[1], OPTIONS)
    assert "broken.mp4" in record["error"]
    assert str(tmp_path) not in str(record)
    assert record["answers"][0]["error"] == record["error"]


def test_a_question_that_does_not_fit_leaves_the_others_answered(tmp_path, asked, monkeypatch):
    one = worker(tmp_path / "out")
    session = type(one.model.open(asked[0].path, **vars(OPTIONS.opening)))
    ask = session.ask

    def refuses(self, questions, **options):
        if any("1 of 0" in question for question in questions):
            raise ValueError("too long")
        return ask(self, questions, **options)

    monkeypatch.setattr(session, "ask", refuses)
    assert one(asked[0]) == "error"
    (record,) = one.records
    assert [bool(a["answer"]) for a in record["answers"]] == [True, False]
    assert [a["error"] for a in record["answers"]] == ["", "too long"]
    monkeypatch.setattr(session, "ask", ask)
    assert worker(tmp_path / "out")(asked[0]) == "there"
    assert worker(tmp_path / "out", retry_errors=True)(asked[0]) == "answered"
