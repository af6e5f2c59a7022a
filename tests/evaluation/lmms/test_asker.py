"""One model: its answers are those of `TimeViper.ask`, with a video, an image, or neither."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from timeviper_fast.analysis.curves import answer_log_likelihood
from timeviper_fast.errors import ArgumentError
from timeviper_fast.evaluation.lmms.asker import Asker, Load
from timeviper_fast.evaluation.lmms.query import Options, Query
from timeviper_fast.inference.room import OutOfMemory
from timeviper_fast.inference.session import Session
from timeviper_fast.text.prompt import build_prompt


@pytest.fixture
def asker(model):
    return Asker(model, "uniform:4", 1)


def query(visual, text="What is it?", **changes):
    seen = visual if visual is None or isinstance(visual, bytes) else str(visual)
    return replace(Query("task", "test", 0, text, seen, Options(3)), **changes)


def said(asker, *queries):
    return [said for _, said in asker.answers(list(enumerate(queries)))]


def test_a_video_s_answers_are_those_of_ask(asker, paths):
    questions = ["What is it?", "Why?"]
    found = said(asker, *(query(paths[0], text) for text in questions))
    options = {"policy": "uniform:4", "max_new_tokens": 3}
    answers = [asker.model.ask(paths[0], text, **options) for text in questions]
    assert [(one.text, one.tokens) for one in found] == [
        (answer.text, len(answer.token_ids)) for answer in answers
    ]


def test_questions_are_answered_together_up_to_the_batch(model, paths, monkeypatch):
    sizes, own = [], Session.ask

    def ask(session, questions, **options):
        sizes.append(len(questions))
        return own(session, questions, **options)

    monkeypatch.setattr(Session, "ask", ask)
    queries = [query(paths[0], f"What is {i}?") for i in range(3)]
    queries.append(query(paths[0], options=Options(2)))
    assert [one.tokens for one in said(Asker(model, None, 2), *queries)] == [3, 3, 3, 2]
    assert sizes == [2, 1, 1]


def test_one_bad_question_of_a_batch_is_an_error_alone(model, paths):
    found = said(Asker(model, None, 3), query(paths[0]), query(paths[0], " "), query(paths[0]))
    assert [bool(one.error) for one in found] == [False, True, False]
    assert "question must not be empty or blank" in found[1].error
    assert found[0].text == found[2].text != ""


def test_an_image_is_asked_about_as_an_image(asker):
    file = io.BytesIO()
    Image.new("RGB", (48, 48), "red").save(file, "PNG")
    [found] = said(asker, query(file.getvalue()))
    wanted = asker.model.ask(file.getvalue(), "What is it?", max_new_tokens=3)
    assert found.text == wanted.text
    assert len(wanted.frame_seconds) == 1


def test_a_question_without_a_video_is_text_alone(asker):
    model = asker.model
    prompt = build_prompt(
        model.tokenizer, "What is it?", template=model.config.template, vision=False
    )
    ids = torch.tensor([[*prompt.before, *prompt.after]])
    want = model.generate(ids, None, ids[:, :0], max_new_tokens=3)
    [found] = said(asker, query(None))
    text = model.tokenizer.decode(want.token_ids[0], skip_special_tokens=True).strip()
    assert (found.text, found.tokens) == (text, 3)
    [score] = said(asker, query(None, continuation=found.text))
    assert score.loss > 0
    assert math.isfinite(score.loss)


def test_losses_are_exact(asker, paths):
    """Also of a continuation that decoding would not say."""
    session = asker.model.open(paths[0], policy="uniform:4")
    for words in (" A", "B"):
        [found] = said(asker, query(paths[0], continuation=words))
        ids = asker.model.tokenizer(words, add_special_tokens=False)["input_ids"]
        assert found.loss == -answer_log_likelihood(session, "What is it?", ids)
        assert not found.greedy
    [empty] = said(asker, query(paths[0], continuation=""))
    assert "answer_ids must hold a token or more" in empty.error


def test_a_broken_video_is_an_error_of_each_question(asker, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video")
    assert ["broken.mp4" in one.error for one in said(asker, query(path), query(path))] == [
        True
    ] * 2
    [gone] = said(asker, query(tmp_path / "gone.mp4"))
    assert "no such file" in gone.error


def test_a_model_without_a_tokenizer_is_refused(model, monkeypatch, tmp_path):
    bare = Asker(model, None, 1).model
    monkeypatch.setattr(bare, "tokenizer", None)
    bare.save_pretrained(tmp_path / "bare")
    load = Load(str(tmp_path / "bare"), None, None, None, 1)
    with pytest.raises(ArgumentError, match="timeviper_fast: pretrained must have a tokenizer"):
        load.asker("cpu")


def test_memory_that_runs_out_is_an_error_of_the_video_or_of_one_question(
    asker, paths, monkeypatch
):
    """Too many questions at a time are asked one by one."""
    own = Session.ask

    def ask(session, questions, **options):
        if len(questions) > 1 or "Why" in questions[0]:
            raise OutOfMemory("too little memory")
        return own(session, questions, **options)

    monkeypatch.setattr(Session, "ask", ask)
    asker = Asker(asker.model, "uniform:4", 2)
    found = said(asker, query(paths[0]), query(paths[0], "Why?"))
    assert [one.error for one in found] == ["", "too little memory"]
    assert found[0].tokens == 3

    def full(*_, **__):
        raise OutOfMemory("no room for the video")

    monkeypatch.setattr(type(asker.model), "open", full)
    assert [one.error for one in said(asker, query(paths[0]), query(paths[0]))] == [
        "no room for the video"
    ] * 2
