"""A stream answers as the file of its frames does, to the bit, whenever it is asked."""

from __future__ import annotations

from dataclasses import replace
from threading import Event, Thread
from time import sleep

import pytest
import torch

from tests.random_model import tiny_model
from timeviper_fast.config import CompressionStage
from timeviper_fast.video import Frames

STAGES = (CompressionStage(2, "uniform", 0.5), CompressionStage(8, "attention", 0.1))
OPTIONS = {"chunk": 64, "frame_batch": 4, "stages": STAGES}
FRAMES = torch.randint(0, 255, (23, 48, 48, 3), dtype=torch.uint8)
QUESTION = "What moves?"


def in_a_file(model, frames: int):
    options = {"policy": "fps:1", "mention_duration": True, "max_new_tokens": 4}
    return replace(model.ask(FRAMES[:frames], QUESTION, **options, **OPTIONS), stops=(), notes=())


def asked(stream):
    said = stream.ask(QUESTION, max_new_tokens=4, mention_duration=True)
    return replace(said, stops=(), notes=())


@pytest.mark.parametrize("push", [1, 3, 8, 23])
def test_every_answer_is_that_of_the_file(model, push):
    stream, done = model.stream(**OPTIONS), 0
    while done < len(FRAMES):
        stream.push(FRAMES[done : done + push])
        done = min(done + push, len(FRAMES))
        if done in (2, 3, 4, 8, 9, 12, 17, 23):
            assert asked(stream) == in_a_file(model, done)
    assert stream.exact
    assert stream.pushed == 23


def test_a_question_of_another_thread_waits_for_the_push(model):
    stream, midway = model.stream(**OPTIONS), Event()
    stream.push(FRAMES[:4])

    def slow(*_):
        midway.set()
        sleep(0.05)

    pushing = Thread(target=stream.push, args=(FRAMES[4:12],))
    with model.backbone.layers[4].register_forward_pre_hook(slow):
        pushing.start()
        assert midway.wait(10)
        answer = asked(stream)
        pushing.join()
    assert answer == in_a_file(model, 12)


def test_an_announced_stream_takes_any_stage(model):
    stages = (CompressionStage(2, "uniform", 0.3), CompressionStage(8, "attention", 0.1))
    options = {**OPTIONS, "stages": stages}
    with pytest.raises(ValueError, match="not 3/10"):
        model.stream(**options)
    stream = model.stream(frames=23, **options)
    stream.push(FRAMES[:20])
    with pytest.raises(ValueError, match=r"have come, all 23 that were announced, .*, got 20"):
        stream.ask(QUESTION)
    with pytest.raises(ValueError, match="at most the 23 that were announced, got 24"):
        stream.push(FRAMES[:4])
    stream.push(FRAMES[20:])
    want = model.ask(FRAMES, QUESTION, policy="fps:1", max_new_tokens=4, **options)
    assert stream.ask(QUESTION, max_new_tokens=4).token_ids == want.token_ids
    even = model.stream(even=True, **options)
    even.push(FRAMES)
    assert not even.ask(QUESTION, max_new_tokens=1).exact


def test_a_moment_is_a_session_that_later_frames_do_not_change(model):
    stream = model.stream(**OPTIONS)
    stream.push(FRAMES[:9])
    then = stream.now()
    assert stream.now() is then
    before = then.ask(QUESTION, max_new_tokens=4)
    stream.push(FRAMES[9:])
    assert replace(then.ask(QUESTION, max_new_tokens=4), stops=()) == replace(before, stops=())
    assert len(stream.now().footage.seconds) == 23
    chat = stream.chat()
    chat.ask(QUESTION, max_new_tokens=2)


@pytest.mark.parametrize("bounded", ["window:20s", "thin:20s"])
def test_a_bound_holds_a_day_in_constant_memory(model, bounded):
    stream = model.stream(bounded=bounded, **{**OPTIONS, "chunk": 16})

    def held() -> int:
        prefix = stream._prefix
        stores = [prefix.cache.nbytes, prefix.rows.nbytes]
        stores += [s.dropped.nbytes for s in prefix.stages if s.dropped]
        numbers = [*prefix.passed, *[s.kept for s in prefix.stages], [prefix.numbers]]
        return sum(stores) + sum(x.nbytes for parts in numbers for x in parts)

    assert stream.exact
    bytes_held = []
    for _ in range(12):
        stream.push(FRAMES)
        bytes_held.append(held())
    assert max(bytes_held[4:]) <= 1.3 * max(bytes_held[:4])
    answer = stream.ask(QUESTION, max_new_tokens=3)
    assert not answer.exact
    assert len(answer.frame_seconds) <= 20 * 9 / 8 + 8
    assert answer.frame_seconds[-1] == 12 * 23 - 1
    assert set(answer.kept_seconds) <= set(answer.frame_seconds)
    assert answer.stages[0].before == 16 * len(answer.frame_seconds)


def test_what_a_window_forgot_is_not_in_it(model):
    """A window as long as the stream is the stream; a shorter one is another video."""
    whole, long, short = (
        model.stream(bounded=bounded, **OPTIONS) for bounded in (None, "window:1h", "window:8s")
    )
    for stream in (whole, long, short):
        for start in range(0, 23, 4):
            stream.push(FRAMES[start : start + 4])
    assert asked(long) == asked(whole)
    assert long.exact
    assert not short.exact
    assert min(asked(short).kept_seconds) >= 22 - 8 * 9 / 8 - 4


@pytest.mark.parametrize(
    ("frames", "seconds", "words"),
    [
        (FRAMES.float(), None, r"frames must be uint8 .*, got \(23, 48, 48, 3\) torch.float32"),
        ("x.mp4", None, "frames must be uint8 .*, got str"),
        (FRAMES[:2, :0], None, r"frames must be uint8 .*, got \(2, 0, 48, 3\) torch.uint8"),
        ([FRAMES[0], FRAMES[1, :40]], None, "frames must be of one size, got .*40, 48, 3"),
        (FRAMES[:2], "now", "seconds must be numbers, got 'now'"),
        (FRAMES[:2], [1.0], "seconds must have one for each of the 2 frames, got 1"),
        (FRAMES[:2], [1.0, 1.0], "seconds must be finite and ascend"),
        (FRAMES[:1], [float("nan")], "seconds must be finite and ascend"),
    ],
)
def test_frames_that_are_none(model, frames, seconds, words):
    stream = model.stream(**OPTIONS)
    with pytest.raises(ValueError, match=words):
        stream.push(frames, seconds)
    assert stream.pushed == 0


def test_forms_of_frames(model):
    stream = model.stream(fps=2.0, **OPTIONS)
    stream.push(FRAMES[0])
    stream.push(FRAMES[1].numpy())
    stream.push([FRAMES[2], FRAMES[3]])
    stream.push(Frames(FRAMES[4:6], torch.tensor([7.0, 9.0])))
    assert stream.ask(QUESTION, max_new_tokens=1).frame_seconds == (0.0, 0.5, 1.0, 1.5, 7.0, 9.0)
    with pytest.raises(ValueError, match="seconds must be finite and ascend"):
        stream.push(FRAMES[0], 8.0)


def test_a_broken_frame_leaves_the_stream_as_it_was(model):
    stream = model.stream(**OPTIONS)
    stream.push(FRAMES[:9])
    with pytest.raises(ValueError, match="frames must be uint8"):
        stream.push([FRAMES[9].float()])
    stream.push(FRAMES[9:12])
    assert asked(stream) == in_a_file(model, 12)


@pytest.mark.parametrize("part", ["vision", "backbone.layers.4"])
def test_a_push_that_broke_off_is_never_half_of_a_video(model, part, monkeypatch):
    """Some of its frames are in the stream: pushed again, they would be there twice."""
    stream = model.stream(**OPTIONS)
    stream.push(FRAMES[:3])
    moment = stream.now()
    want = moment.ask(QUESTION, max_new_tokens=2).token_ids

    def out_of_memory(*_):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(model.get_submodule(part), "forward", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            stream.push(FRAMES[3:])
    with pytest.raises(ValueError, match="be whole: a push was interrupted midway"):
        stream.push(FRAMES[3:])
    with pytest.raises(ValueError, match="be whole: a push was interrupted midway"):
        stream.ask(QUESTION)
    assert moment.ask(QUESTION, max_new_tokens=2).token_ids == want


def test_a_stream_is_of_one_set_of_weights():
    """Frames in front of a training step and behind it are no video that one model has read."""
    model = tiny_model()
    stream = model.stream(**OPTIONS)
    stream.push(FRAMES[:3])
    weight = next(model.parameters())
    with torch.no_grad():
        weight.mul_(1)
    for use in (lambda: stream.push(FRAMES[3:]), lambda: stream.ask(QUESTION)):
        with pytest.raises(ValueError, match="have the weights with which the stream began"):
            use()


def test_mistakes(model):
    with pytest.raises(ValueError, match=r"bounded must be window:LENGTH .*, got 5"):
        model.stream(bounded=5)
    with pytest.raises(ValueError, match="even must be True or False, got 1"):
        model.stream(even=1)
    for name in ("chunk", "frame_batch"):
        with pytest.raises(ValueError, match=f"{name} must be a positive number, got None"):
            model.stream(**{name: None})
    with pytest.raises(ValueError, match="frames must be a positive number"):
        model.stream(frames=0)
    with pytest.raises(ValueError, match="fps must be a number above 0"):
        model.stream(fps=0)
    with pytest.raises(ValueError, match="bounded must be None where the frames are announced"):
        model.stream(frames=5, bounded="window:2h")
    with pytest.raises(ValueError, match="frames must have come before a question, got 0"):
        model.stream(**OPTIONS).ask(QUESTION)


def test_frames_beyond_the_window_are_refused_before_they_are_read(model):
    config = model.config
    model.config = replace(config, backbone=replace(config.backbone, max_position_embeddings=200))
    try:
        stream = model.stream(**OPTIONS)
        for start in range(0, 8, 4):
            stream.push(FRAMES[start : start + 4])
        with pytest.raises(ValueError, match=r"window of 200 tokens.*bounded="):
            stream.push(FRAMES[8:])
        assert stream.pushed == 8
    finally:
        model.config = config


def test_frames_beyond_the_memory_are_refused_before_they_are_read(model, monkeypatch):
    stream = model.stream(**OPTIONS)
    stream.push(FRAMES[:9])
    monkeypatch.setattr("timeviper_fast.inference.room.free_bytes", lambda device: 10**6)
    with pytest.raises(ValueError, match=r"frames must fit the memory of the device"):
        stream.push(FRAMES[9:])
    monkeypatch.undo()
    stream.push(FRAMES[9:])
    assert asked(stream) == in_a_file(model, 23)


def test_one_large_push_into_a_window_is_forgotten_batch_by_batch(model):
    config = model.config
    model.config = replace(config, backbone=replace(config.backbone, max_position_embeddings=420))
    try:
        stream = model.stream(bounded="window:8s", **{**OPTIONS, "chunk": 16})
        stream.push(torch.cat([FRAMES] * 3))
    finally:
        model.config = config
    assert stream.pushed == 69
