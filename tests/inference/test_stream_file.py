"""A stream that was saved goes on as if it had never ended, to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.random_model import tiny_model
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.tensor_file import read_header

STAGES = (CompressionStage(2, "uniform", 0.5), CompressionStage(8, "attention", 0.1))
OPTIONS = {"chunk": 48, "frame_batch": 4, "stages": STAGES}
FRAMES = torch.randint(0, 255, (23, 48, 48, 3), dtype=torch.uint8)
QUESTION = "What moves?"


def said(stream):
    return replace(stream.ask(QUESTION, max_new_tokens=4), stops=())


@pytest.mark.parametrize(
    "options",
    [{}, {"frames": 23}, {"bounded": "window:6s"}, {"even": True}, {"lead": "Look:"}],
    ids=["exact", "announced", "window", "even", "lead"],
)
@pytest.mark.parametrize("cut", [0, 1, 6, 9, 16])
def test_it_goes_on_to_the_bit(model, tmp_path, options, cut):
    """Cut between batches of frames, blocks of rows and pairs of tokens."""
    chosen = {**OPTIONS, "chunk": 16 if "bounded" in options else 48, **options}
    whole, first = (model.stream(**chosen) for _ in range(2))
    for start in range(0, 23, 3):
        whole.push(FRAMES[start : start + 3])
    for start in range(0, cut, 3):
        first.push(FRAMES[start : min(start + 3, cut)])
    first.save(tmp_path / "a.stream")
    second = model.load_stream(tmp_path / "a.stream")
    assert (second.pushed, second.exact) == (first.pushed, first.exact)
    if cut > 1 and "frames" not in options:
        assert said(second) == said(first)
    for stream in (first, second):
        for start in range(cut, 23, 3):
            stream.push(FRAMES[start : start + 3])
    if "bounded" not in options:
        # a window forgets when frames come, so other pushes forget at other times
        assert said(second) == said(whole)
    assert said(second) == said(first)


def test_no_stage_and_an_early_one(model, tmp_path):
    early = CompressionStage(0, "uniform", 0.5, transfer=False)
    asking = CompressionStage(3, "attention", 0.2, transfer=False)
    for stages in ((), (early, asking)):
        stream = model.stream(**{**OPTIONS, "stages": stages})
        stream.push(FRAMES[:10])
        stream.save(tmp_path / "a.stream", overwrite=True)
        again = model.load_stream(tmp_path / "a.stream")
        for one in (stream, again):
            one.push(FRAMES[10:])
        assert said(again) == said(stream)


def test_a_file_of_another_model_or_kind_is_refused(model, tmp_path):
    stream = model.stream(**OPTIONS)
    stream.push(FRAMES[:9])
    path = tmp_path / "a.stream"
    stream.save(path)
    with pytest.raises(ValueError, match="path must be the name of a new file"):
        stream.save(path)
    with pytest.raises(ValueError, match=r"load_session: path .* got the format .*\.stream"):
        model.load_session(path)
    other = tiny_model()
    with torch.no_grad():
        other.backbone.norm_f.weight.mul_(2)
    with pytest.raises(ValueError, match=r"load_stream: path .* weights must be"):
        other.load_stream(path)
    stream.now().save(tmp_path / "a.session")
    with pytest.raises(ValueError, match=r"be a stream file .* got the format .*session"):
        model.load_stream(tmp_path / "a.session")
    path.write_bytes(path.read_bytes()[:-64])
    assert read_header(path) is None
    with pytest.raises(ValueError, match="damaged, truncated"):
        model.load_stream(path)


def test_a_half_pushed_stream_is_not_saved(model, tmp_path):
    stream = model.stream(**OPTIONS)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model.backbone.layers[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream.push(FRAMES)
    handle.remove()
    with pytest.raises(ValueError, match="be whole: a push was interrupted midway"):
        stream.save(tmp_path / "a.stream")
    assert list(tmp_path.iterdir()) == []
