"""One model in its own thread: batches, turns, questions that are given up, and the end."""

from __future__ import annotations

import threading

import pytest

from tests.serve.common import OPENING, job, small_video, wait_for
from timeviper_fast.inference.request import Question, Sampling
from timeviper_fast.serve.faults import Fault
from timeviper_fast.serve.media import MediaRoot
from timeviper_fast.serve.sessions import bytes_held
from timeviper_fast.serve.worker import Job, Places, Worker


@pytest.fixture
def worker(model):
    """A worker that does not run yet, so that questions wait together."""
    worker = Worker(model, 10**9)
    yield worker
    worker.close()


def answer_all(worker: Worker, jobs: list[Job]) -> list:
    """Answers of questions that waited together."""
    for one in jobs:
        worker.submit(one)
    worker.start()
    return [one.done.result(60) for one in jobs]


def wrong(given: Job) -> Fault:
    fault = given.done.exception(60)
    assert isinstance(fault, Fault)
    return fault


def test_waiting_questions_are_one_batch_each_with_its_own_answer(worker, model, media, root):
    questions = ["What?", "Which colour is it, and where?", "How many are there?", "Why so?"]
    answered = answer_all(worker, [job(media, "a.mp4", question) for question in questions])
    session = model.open(root / "a.mp4", policy="fps:1")
    for one, question in zip(answered, questions):
        alone = session.ask(question, max_new_tokens=6)
        assert (one.answer.text, one.answer.token_ids) == (alone.text, alone.token_ids)
        assert one.prompt_tokens == session.ended.segment.length + len(
            session.prompt(Question(question)).after
        )
    assert len({one.answer.text for one in answered}) > 1
    counts = worker.counts
    assert (counts["videos"], counts["batches"], counts["answers"]) == (1, 1, 4)
    assert [one.held for one in answered] == [False] * 4


def test_a_turn_has_eight_questions_then_the_next_video_comes(worker, media):
    done: list[str] = []
    jobs = [job(media, "a.mp4", f"Question {n}?") for n in range(10)]
    jobs += [job(media, "b.mp4") for _ in range(2)]
    for one in jobs:
        one.done.add_done_callback(lambda _, name=one.media.name: done.append(name))
    answered = answer_all(worker, jobs)
    wait_for(lambda: len(done) == 12)
    assert done == ["a.mp4"] * 8 + ["b.mp4"] * 2 + ["a.mp4"] * 2
    assert worker.counts["batches"] == 3
    assert [one.held for one in answered[8:10]] == [True, True]


def test_other_options_are_other_batches(worker, model, media, root):
    drawn = Sampling(temperature=1.0, seed=5)
    jobs = [job(media, "a.mp4"), job(media, "a.mp4", tokens=3)]
    jobs.append(Job(media.find("a.mp4"), OPENING, Question("What?", 6, drawn)))
    answered = answer_all(worker, jobs)
    session = model.open(root / "a.mp4", policy="fps:1")
    assert worker.counts["batches"] == 3
    assert len(answered[1].answer.token_ids) <= 3
    assert answered[2].answer.text == session.ask("What?", max_new_tokens=6, sampling=drawn).text


def test_streams_get_their_text_in_pieces_and_are_one_batch_with_others(worker, media):
    heard: list[list[str]] = [[], []]
    jobs = [job(media, "a.mp4", "Why so?", on_text=heard[0].append), job(media, "a.mp4")]
    jobs.append(job(media, "a.mp4", on_text=heard[1].append))
    first, whole, second = answer_all(worker, jobs)
    assert worker.counts["batches"] == 1
    assert "".join(heard[0]).strip() == first.answer.text
    assert "".join(heard[1]).strip() == second.answer.text == whole.answer.text
    assert min(map(len, heard)) > 1


def test_a_stream_that_has_begun_is_not_answered_again(worker, media, monkeypatch):
    """A batch fails behind the first words of one of three: the other two are answered alone."""
    pieces: list[str] = []
    jobs = [job(media, "a.mp4"), job(media, "a.mp4", on_text=pieces.append)]
    jobs.append(job(media, "a.mp4", on_text=lambda piece: None))
    asked = worker._asked

    def failing(session, together):
        if len(together) > 1:
            together[1].tell("half")
            raise MemoryError("no room")
        return asked(session, together)

    monkeypatch.setattr(worker, "_asked", failing)
    for one in jobs:
        worker.submit(one)
    worker.start()
    assert jobs[0].done.result(60).answer.text == jobs[2].done.result(60).answer.text
    assert wrong(jobs[1]).status == 503
    assert pieces == ["half"]


def test_who_gives_up_ends_what_is_decoded_for_it_alone(worker, media):
    """The two left questions of 500 tokens end at their next token, whole or streamed."""
    begun = threading.Event()
    left = job(media, "a.mp4", tokens=500, on_text=lambda _: begun.set())
    worker.submit(left)
    worker.start()
    assert begun.wait(20)
    left.fail(Fault(499, "left"))
    assert answer_after(worker, media)
    assert worker.counts["left"] == 1
    assert worker.counts["tokens"] == 6
    # a whole answer, given up while it is decoded
    tokens = threading.Event()
    whole = job(media, "a.mp4", tokens=500)
    asked = worker._asked

    def slow(session, jobs):
        threading.Timer(0.05, tokens.set).start()
        return asked(session, jobs)

    worker._asked = slow
    worker.submit(whole)
    assert tokens.wait(20)
    whole.fail(Fault(499, "left"))
    worker._asked = asked
    assert answer_after(worker, media)
    assert worker.counts["left"] == 2
    assert worker.counts["tokens"] == 12


def answer_after(worker: Worker, media: MediaRoot, name: str = "a.mp4") -> str:
    following = job(media, name)
    worker.submit(following)
    return following.done.result(20).answer.text


def test_one_of_a_batch_that_gives_up_does_not_end_the_others(worker, media):
    jobs = [job(media, "a.mp4", tokens=40) for _ in range(3)]
    for one in jobs:
        worker.submit(one)
    jobs[1].fail(Fault(499, "left"))
    worker.start()
    assert jobs[0].done.result(20).answer.text == jobs[2].done.result(20).answer.text
    assert wrong(jobs[1]).status == 499
    # they are done a moment before they are counted
    wait_for(lambda: worker.counts["answers"] == 2)


def test_a_video_that_nobody_waits_for_is_not_read_to_its_end(worker, model, tmp_path):
    small_video(tmp_path / "long.mp4", 9, seconds=60)
    media = MediaRoot(tmp_path, 10**6)
    given = job(media, "long.mp4")
    opened, threads = model.open, threading.active_count()

    def leaving(*args, progress, **options):
        def told(*numbers):
            # while another thread decodes ahead, not while the file is scanned
            if any(thread.name == "read-ahead" for thread in threading.enumerate()):
                given.fail(Fault(499, "left"))
            progress(*numbers)

        return opened(*args, progress=told, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "open", leaving)
        worker.submit(given)
        worker.start()
        wait_for(lambda: wrong(given).status == 499 and worker.waiting == 0)
        # the thread that decodes ahead has ended too: only the worker's own is left
        wait_for(lambda: threading.active_count() <= threads + 1)
    assert worker.counts["videos"] == 0
    assert answer_after(worker, media, "long.mp4")


def test_a_video_that_cannot_be_read_fails_its_questions_alone(worker, root, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    small_video(tmp_path / "b.mp4", 1)
    media = MediaRoot(tmp_path, 10**6)
    bad = [job(media, "text.mp4"), job(media, "text.mp4")]
    good = job(media, "b.mp4")
    for one in (*bad, good):
        worker.submit(one)
    worker.start()
    for one in bad:
        fault = wrong(one)
        assert (fault.status, fault.code) == (400, "invalid_video")
        assert fault.message.startswith("text.mp4: ")
        assert str(tmp_path) not in fault.message
    assert good.done.result(20).answer.text


def test_a_question_that_does_not_fit_fails_alone(worker, model, media):
    longest = model.config.backbone.max_position_embeddings
    jobs = [job(media, "a.mp4"), job(media, "a.mp4", "x" * longest), job(media, "a.mp4", "Who?")]
    for one in jobs:
        worker.submit(one)
    worker.start()
    assert wrong(jobs[1]).status == 400
    assert jobs[0].done.result(20).answer.text
    assert jobs[2].done.result(20).answer.text


def test_kept_videos_are_bounded_by_bytes(model, media, root):
    size = bytes_held(model.open(root / "a.mp4", policy="fps:1"))
    worker = Worker(model, 2 * size + size // 2)
    worker.start()
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4", "d.mp4"):
        given = job(media, name)
        worker.submit(given)
        given.done.result(20)
    assert len(worker.sessions) == 2
    assert worker.sessions.nbytes <= worker.sessions.most_bytes
    assert worker.counts["videos"] == 4
    assert worker.sessions.get(job(media, "d.mp4").key) is not None
    worker.close()


def test_the_end_fails_what_waits_and_what_is_answered(worker, media):
    begun = threading.Event()
    jobs = [job(media, "a.mp4", tokens=500, on_text=lambda _: begun.set()), job(media, "b.mp4")]
    for one in jobs:
        worker.submit(one)
    worker.start()
    assert begun.wait(20)
    worker.close()
    assert not worker.alive
    late = job(media, "a.mp4")
    worker.submit(late)
    assert [(wrong(one).status, wrong(one).code) for one in (*jobs, late)] == [(503, "closing")] * 3


def test_the_end_does_not_wait_for_a_step_that_takes_long(worker, model, media):
    begun, goes_on = threading.Event(), threading.Event()

    def stuck(*_, **options):
        begun.set()
        goes_on.wait(20)
        raise RuntimeError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "open", stuck)
        given = job(media, "a.mp4")
        worker.submit(given)
        worker.start()
        assert begun.wait(20)
        worker.close(0.05)
        assert (wrong(given).code, worker.alive) == ("closing", True)
        goes_on.set()
        wait_for(lambda: not worker.alive)


def test_a_defect_fails_its_questions_and_the_next_ones_are_answered(worker, media):
    answer = worker._answer

    def broken(*_):
        worker._answer = answer
        raise KeyError("a defect")

    worker._answer = broken
    jobs = [job(media, "a.mp4"), job(media, "a.mp4")]
    for one in jobs:
        worker.submit(one)
    worker.start()
    assert [(wrong(one).status, wrong(one).code) for one in jobs] == [(500, "internal_error")] * 2
    assert answer_after(worker, media)


def test_places_are_given_back_once():
    places = Places(2)
    first, _ = places.take(), places.take()
    with pytest.raises(Fault, match="try again in 1 s") as raised:
        places.take()
    assert (raised.value.status, raised.value.headers) == (429, {"Retry-After": "1"})
    first()
    first()
    assert places.taken == 1
    places.take()
    with pytest.raises(Fault):
        places.take()
