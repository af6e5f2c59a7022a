"""How rows arrive at a prefix changes no bit: pushes of any size, announced or not."""

from __future__ import annotations

import pytest
import torch

from tests.inference.one_go import NEW, SCHEDULES, agree, backbone, one_go, read, same_bits, words
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.ended import Ended
from timeviper_fast.inference.prefix import Prefix, asking_stage
from timeviper_fast.layout import Segment, VisualSpan


@pytest.mark.parametrize("name", ["shipped", "at 0", "two uniform"])
@pytest.mark.parametrize("pushes", [1, 16, 37, 1000])
def test_how_rows_arrive_changes_no_bit(name: str, pushes: int) -> None:
    model = backbone("M*M-M*M-M*M", SCHEDULES[name])
    front, vision = words(4, 1), words(160, 2)
    whole = read(model, front, vision, chunk=32, pushes=160)
    same_bits(read(model, front, vision, chunk=32, pushes=pushes), whole, model)


HALVES = (CompressionStage(3, "uniform", 0.5), CompressionStage(5, "attention", 0.1))


@pytest.mark.parametrize("pushes", [1, 16, 37, 1000])
def test_a_length_that_nobody_announced_changes_no_bit(pushes: int) -> None:
    model = backbone("M*M-M*M-M*M", HALVES)
    front, vision = words(4, 1), words(160, 2)
    whole = read(model, front, vision, chunk=32, pushes=160)
    same_bits(read(model, front, vision, chunk=32, pushes=pushes, expected=False), whole, model)


def test_a_stream_is_asked_between_pushes_and_goes_on() -> None:
    model = backbone("M*M-M*M-M*M", HALVES)
    front, vision = words(4, 1), words(160, 2)
    stream = Prefix(model, chunk=32)
    stream.push(front, vision=False)
    for start in range(0, 160, 16):
        stream.push(vision[:, start : start + 16], vision=True)
        now = stream.fork()
        now.finish()
        until = vision[:, : start + 16]
        same_bits(Ended.of(now), read(model, front, until, chunk=32, pushes=999), model)


def test_text_between_frames_belongs_to_the_video() -> None:
    model = backbone("M*M-M*M-M*M", SCHEDULES["shipped"])
    pieces = [words(3, 1)]
    runs, length = [], 3
    prefix_parts: list[tuple[torch.Tensor, bool]] = [(pieces[0], False)]
    for frame in range(12):
        vision, label = words(16, 10 + frame), words(frame % 3, 40 + frame)
        runs.append(VisualSpan(length, 16))
        length += 16
        prefix_parts.append((vision, True))
        if frame < 11:
            prefix_parts.append((label, False))
            length += label.shape[1]
    text = words(5, 99)
    whole = torch.cat([*(rows for rows, _ in prefix_parts), text], 1)
    segment = Segment.of_runs(whole.shape[1], runs)
    want = one_go(model, whole, segment)
    front = Segment.of_runs(length, runs)
    for announced in (front, None):
        prefix = Prefix(model, chunk=21, expected=announced)
        for rows, vision in prefix_parts:
            prefix.push(rows, vision=vision)
        prefix.finish()
        agree(model, Ended.of(prefix).read([text], max_new_tokens=NEW), want)


def test_the_asking_stage() -> None:
    uniform, asking = CompressionStage(2, "uniform", 0.5), CompressionStage(3, "attention", 0.1)
    assert asking_stage((uniform, asking, asking)) == 1
    assert asking_stage((uniform, uniform)) == 2
    assert asking_stage(()) == 0


def test_what_a_stream_cannot_thin_is_refused() -> None:
    third = backbone("M*M-M*M-M*M", (CompressionStage(3, "uniform", 0.3),))
    with pytest.raises(ValueError, match=r"of what reaches a uniform stage, not 3/10"):
        Prefix(third, chunk=32)
    model = backbone("M*M-M*M-M*M", (CompressionStage(3, "uniform", 0.75),))
    stream = Prefix(model, chunk=32)
    stream.push(words(30, 1), vision=True)
    with pytest.raises(ValueError, match=r"keep=0.75 is exact online, got 30"):
        stream.finish()


def test_mistakes_of_a_prefix_are_refused() -> None:
    model = backbone("M*M-M*M-M*M", HALVES)
    announced = Prefix(model, chunk=32, expected=Segment(36, VisualSpan(4, 32)))
    announced.push(words(4, 1), vision=False)
    announced.push(words(16, 2), vision=True)
    with pytest.raises(ValueError, match="32 vision tokens of 36, as announced, got 16 of 20"):
        announced.finish()
    announced.push(words(16, 2), vision=True)
    announced.finish()
    with pytest.raises(ValueError, match="one that has ended"):
        announced.push(words(1, 2), vision=True)
    stream = Prefix(model, chunk=32)
    stream.push(words(16, 2), vision=True)
    stream.push(words(2, 2), vision=False)
    with pytest.raises(ValueError, match="text behind it belongs to the question"):
        stream.finish()


def test_a_push_that_broke_off_is_not_gone_on_with() -> None:
    model = backbone("M*M-M*M-M*M", HALVES)
    stream = Prefix(model, chunk=8)
    stream.push(words(16, 2), vision=True)
    layer = model.layers[4]
    handle = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stream.push(words(64, 2), vision=True)
    handle.remove()
    with pytest.raises(ValueError, match="interrupted midway"):
        stream.push(words(16, 2), vision=True)
    with pytest.raises(ValueError, match="interrupted midway"):
        stream.fork()
