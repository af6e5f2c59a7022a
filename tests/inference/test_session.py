"""A session answers as asking afresh does, to the bit, and no question changes it."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from tests.inference.one_go import digest
from tests.random_model import tiny_model
from timeviper_fast import Sampling
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.session import Session
from timeviper_fast.model import cache
from timeviper_fast.model.cache import AttentionState, HybridCache

OPTIONS = {"policy": "fps:1", "chunk": 64, "frame_batch": 5}
QUESTIONS = ["What moves?", "How many squares are there, and where do they go?", "Why?"]


@pytest.fixture(scope="module")
def session(model, video) -> Session:
    return model.open(video, **OPTIONS)


def the_same(a, b) -> bool:
    return replace(a, stops=()) == replace(b, stops=())


def test_an_answer_is_that_of_asking_afresh(model, video, session):
    before = digest(session._ended)
    for question in [*QUESTIONS, QUESTIONS[0]]:
        afresh = model.ask(video, question, max_new_tokens=6, **OPTIONS)
        assert the_same(session.ask(question, max_new_tokens=6), afresh)
    assert digest(session._ended) == before


def test_a_list_of_questions_gives_a_list_of_answers(session):
    many = QUESTIONS * 3 + [[{"role": "user", "content": "What moves?"}]]
    answers = session.ask(many, max_new_tokens=6)
    for question, answer in zip(many, answers):
        assert the_same(answer, session.ask(question, max_new_tokens=6))
    assert session.ask(QUESTIONS[:1], max_new_tokens=6)[0].text == answers[0].text


def test_each_question_of_a_list_has_its_own_listener(session):
    """More questions than are answered together; some are not listened to."""
    many, heard = QUESTIONS * 4, [[] for _ in range(12)]
    on_text = [pieces.append if row % 3 else None for row, pieces in enumerate(heard)]
    answers = session.ask(many, max_new_tokens=6, on_text=on_text)
    for row, (pieces, answer) in enumerate(zip(heard, answers)):
        assert "".join(pieces).strip() == (answer.text if row % 3 else "")
    assert any(answer.text for answer in answers[1::3])


def test_states_that_are_written_now_and_then_change_no_answer(model, video, session, monkeypatch):
    """Four tokens a write; the session stays whole, and so do files of it."""
    expected, before = session.ask(QUESTIONS, max_new_tokens=9), digest(session._ended)
    monkeypatch.setattr(model.backbone, "replay", 4)
    opened, capacities = model.open(video, **OPTIONS), []
    replay = HybridCache.replay
    monkeypatch.setattr(
        HybridCache, "replay", lambda own, k: capacities.append(k) or replay(own, k)
    )
    answers = opened.ask(QUESTIONS, max_new_tokens=9)
    assert capacities == [4]
    assert all(the_same(*pair) for pair in zip(answers, expected))
    assert the_same(opened.ask(QUESTIONS[0], max_new_tokens=9), expected[0])
    # one answer alone is decoded as ever
    assert capacities == [4]
    assert digest(opened._ended) == before


def test_a_drawn_answer_does_not_depend_on_its_neighbours(session):
    sampling = Sampling(temperature=1.0, seed=11)
    together = session.ask(QUESTIONS, max_new_tokens=6, sampling=sampling)
    for question, answer in zip(QUESTIONS, together):
        alone = session.ask(question, max_new_tokens=6, sampling=sampling)
        assert alone.token_ids == answer.token_ids


def test_answers_end_by_themselves(model, session):
    """A short answer is not padded by the longer ones beside it."""
    free = session.ask(QUESTIONS, max_new_tokens=6)
    ends = free[0].token_ids[1]
    backbone = model.config.backbone
    model.config = replace(model.config, backbone=replace(backbone, eos_token_ids=(ends,)))
    try:
        answers = session.ask(QUESTIONS, max_new_tokens=6)
    finally:
        model.config = replace(model.config, backbone=backbone)
    first = free[0].token_ids
    assert answers[0].token_ids == first[: first.index(ends) + 1]
    assert answers[0].finish == "stop"
    assert max(len(answer.token_ids) for answer in answers) >= len(answers[0].token_ids)


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("layer", [1, 9])
def test_a_question_that_breaks_off_leaves_the_session_whole(model, session, error, layer):
    before, answer = digest(session._ended), session.ask(QUESTIONS[1], max_new_tokens=3)

    def fail(*_):
        raise error

    handle = model.backbone.layers[layer].register_forward_pre_hook(fail)
    with pytest.raises(error):
        session.ask(QUESTIONS[1], max_new_tokens=3)
    handle.remove()
    assert digest(session._ended) == before
    assert the_same(session.ask(QUESTIONS[1], max_new_tokens=3), answer)


def test_words_in_front_of_the_video(model, video):
    behind = model.open(video, lead="Look closely:", **OPTIONS)
    prompt = model.tokenizer.decode(list(behind.before))
    assert prompt.endswith("Look closely:")
    answer = behind.ask(QUESTIONS[0], max_new_tokens=4)
    assert answer.text
    other = model.open(video, **OPTIONS)
    other.opening = behind.opening
    with pytest.raises(ValueError, match=r"text in front of the video that it was read with"):
        other.ask(QUESTIONS[0])


def test_questions_share_the_videos_keys_and_values(session):
    ended = session._ended
    rooms = ended._rooms(9, [9] * 100)
    fork = ended.cache.fork(3, rooms)
    shared = 0
    for own, state in zip(ended.cache.layers, fork.layers):
        if isinstance(own, AttentionState) and own.longest:
            assert state.prefix[0].data_ptr() == own.key.data_ptr()
            shared += 1
    assert shared


def test_mistakes(session):
    with pytest.raises(ValueError, match="question must not be empty"):
        session.ask([])
    rule = "on_text must be a list with a function or None for each of the 3 questions"
    for wrong in (print, [print] * 2):
        with pytest.raises(ValueError, match=rule):
            session.ask(QUESTIONS, on_text=wrong)
    with pytest.raises(ValueError, match=r"on_text\[1\] must be a function or None, got 5"):
        session.ask(QUESTIONS, on_text=[None, 5, print])
    with pytest.raises(ValueError, match="on_text must be a function or None"):
        session.ask("What?", on_text=[print])
    with pytest.raises(ValueError, match="max_new_tokens must be a positive number"):
        session.ask("What?", max_new_tokens=0)


def test_a_sessions_stages_are_its_own(model, video):
    none = model.open(video, stages="none", **OPTIONS)
    answer = none.ask(QUESTIONS[0], max_new_tokens=3)
    assert answer.stages == ()
    assert the_same(
        answer, model.ask(video, QUESTIONS[0], max_new_tokens=3, stages="none", **OPTIONS)
    )
    assert model.ask(video, QUESTIONS[0], max_new_tokens=3, **OPTIONS).stages != ()


def test_threads_ask_sessions_of_unequal_stages(model, video, session):
    plain = model.open(video, stages="none", **OPTIONS)
    asked = [(one, q) for q in QUESTIONS[:2] for one in (session, plain)] * 2
    want = [one.ask(q, max_new_tokens=3) for one, q in asked]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda pair: pair[0].ask(pair[1], max_new_tokens=3), asked))
    assert all(map(the_same, got, want))
    assert model.backbone.stages == model.config.stages != ()


def test_what_happens_to_the_model_afterwards(video):
    """Stages of the model are not the session's; weights are, so a change of them is refused."""
    model = tiny_model()
    session = model.open(video, **OPTIONS)
    answer = session.ask(QUESTIONS[0], max_new_tokens=3)
    # the transfer's weights leave the model, not the session
    model.set_stages(())
    assert the_same(session.ask(QUESTIONS[0], max_new_tokens=3), answer)
    chat = session.chat()
    with torch.no_grad():
        model.backbone.embeddings.weight.mul_(2)
    # the control is kept, so that one of mixed weights would be shown for ever
    uses = (lambda: session.ask(QUESTIONS[0]), lambda: chat.ask(QUESTIONS[0]), session.control)
    for use in uses:
        with pytest.raises(ValueError, match=r"was read, (.*written \d+ times), got '(?!\1)"):
            use()
    model.to(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"was read, torch.float32 on cpu.*, got 'torch.bfloat16 on"
    ):
        session.ask(QUESTIONS[0])


def test_a_session_at_the_edges(model):
    """One frame, one row per pass, a list of frames shorter than the policy, nothing that stays."""
    frames = torch.arange(3 * 8 * 8 * 3, dtype=torch.uint8).view(3, 8, 8, 3)
    nothing = (
        CompressionStage(2, "uniform", 0.001, transfer=True),
        CompressionStage(8, "attention", 0.0005, transfer=False),
    )
    cases = ({}, {"chunk": 1}, {"policy": "uniform:50"}, {"stages": nothing})
    for options in cases:
        for count in (1, 3):
            given = frames[:count]
            answers = model.open(given, **options).ask(["What?", "Why so?"], max_new_tokens=2)
            afresh = model.ask(given, "What?", max_new_tokens=2, **options)
            assert the_same(answers[0], afresh)
    assert afresh.kept_seconds == ()
    assert "No vision token was left" in afresh.notes[0]


# a name of the CPU that is not the model's: the session has to come from there for each question
ELSEWHERE = torch.device("cpu:0")


def test_a_session_that_lies_elsewhere_comes_back_for_each_question(session):
    before, answer = digest(session._ended), session.ask(QUESTIONS, max_new_tokens=3)
    chat = session.chat()
    said = [chat.ask(question, max_new_tokens=3).text for question in QUESTIONS[:2]]
    parked = copy.copy(session)
    parked._ended = session._ended.on(ELSEWHERE)
    assert not shares_memory(parked, session)
    for _ in range(2):
        again = parked.ask(QUESTIONS, max_new_tokens=3)
        assert all(map(the_same, again, answer))
    chat = parked.chat()
    assert [chat.ask(question, max_new_tokens=3).text for question in QUESTIONS[:2]] == said
    assert digest(session._ended) == before
    bits = digest(parked._ended)
    assert digest(parked.to("cpu")._ended) == bits
    here = torch.device("cpu")
    assert parked._ended.nbytes_on(here) == session._ended.nbytes_on(here)


def shares_memory(a: Session, b: Session) -> bool:
    """Whether keys and values of attention layers or rows lie in the same memory."""
    one, two = (
        {state.key.data_ptr() for state in each._ended.cache.layers if hasattr(state, "key")}
        | {part.hidden.data_ptr() for part in each._ended.rows}
        for each in (a, b)
    )
    return bool(one & two)


def test_layers_come_back_in_the_order_in_which_they_are_read(session, monkeypatch):
    parked, order = session._ended.on(ELSEWHERE), []
    layers = {id(state): i for i, state in enumerate(parked.cache.layers)}
    moved = cache._on
    monkeypatch.setattr(cache, "_on", lambda s, d: order.append(layers[id(s)]) or moved(s, d))
    text = session._embedded([1, 2, 3])
    parked.read([text], max_new_tokens=1)
    assert order == sorted(order)
    assert len(order) == sum(state is not None for state in parked.cache.layers)


def test_a_session_lies_on_the_host_or_with_its_model(session):
    assert session.to("cpu") is session
    key = next(state.key for state in session._ended.cache.layers if hasattr(state, "key"))
    session.to(torch.device("cpu"))
    assert any(getattr(state, "key", None) is key for state in session._ended.cache.layers)
    with pytest.raises(ValueError, match="to: device must be one of cpu, got 'cuda:7'"):
        session.to("cuda:7")
