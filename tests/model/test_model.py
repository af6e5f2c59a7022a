"""Vision and text embedded in one sequence, with text between frames."""

from __future__ import annotations

import pytest
import torch

from tests.random_model import tiny_model
from timeviper_fast.layout import VisualSpan


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


def test_frames_with_labels_are_embedded_in_order(tiny):
    width = tiny.config.backbone.hidden_size
    frames = torch.randn(3, 4, width)
    ids = [torch.tensor([[5, 6]]), torch.tensor([[7]]), torch.tensor([[8, 9]]), torch.tensor([[3]])]
    embeddings, segment = tiny.embed(ids[0], frames, ids[3], between=ids[1:3])
    words = [tiny.backbone.embeddings(x)[0] for x in ids]
    want = [words[0], frames[0], words[1], frames[1], words[2], frames[2], words[3]]
    assert torch.equal(embeddings[0], torch.cat(want))
    assert (segment.span, segment.text_inside, segment.vision_tokens) == (VisualSpan(2, 15), 3, 12)
    listed, same = tiny.embed(ids[0], list(frames), ids[3], between=ids[1:3])
    assert torch.equal(listed, embeddings)
    assert torch.equal(same.index, segment.index)


def test_a_frame_may_keep_no_token(tiny):
    width = tiny.config.backbone.hidden_size
    runs = [torch.randn(3, width), torch.randn(0, width), torch.randn(2, width)]
    ids = torch.tensor([[5]])
    embeddings, segment = tiny.embed(ids, runs, ids, between=[ids, ids])
    assert embeddings.shape[1] == 9
    assert segment.index.tolist() == [[0, 1, 2, 5, 6]]


def test_labels_are_generated_with(tiny):
    frames = torch.randn(2, 4, tiny.config.backbone.hidden_size)
    ids = torch.tensor([[5, 6]])
    answer = tiny.generate(ids, frames, ids, between=[ids], max_new_tokens=2)
    assert answer.token_ids.shape == (1, 2)
    assert answer.stages[0].before == 8


@pytest.mark.parametrize(
    ("visual", "between", "words"),
    [
        (torch.zeros(3, 4, 128), [torch.zeros(1, 1).long()], r"one text fewer .* \(3\), got 1"),
        (torch.zeros(2, 4, 128), torch.zeros(1, 1).long(), "between must be a list of tensors"),
        (None, [torch.zeros(1, 1).long()], r"one text fewer than visual has runs \(0\), got 1"),
        ([torch.zeros(4, 128), torch.zeros(2, 64)], [torch.zeros(1, 1).long()], "for each run"),
        (torch.zeros(2, 4, 128), [torch.zeros(1, 1)], "between must be a tensor"),
        (torch.zeros(2, 4, 128), [torch.zeros(2, 1).long()], r"have the batch of before \(1\)"),
    ],
)
def test_embed_checks_its_runs(tiny, visual, between, words):
    ids = torch.zeros(1, 2).long()
    with pytest.raises(ValueError, match=words):
        tiny.embed(ids, visual, ids, between=between)


@torch.no_grad()
def test_vision_compiles_on_request_only(monkeypatch):
    """Tokens of a compiled batch are equal within rounding; nothing else is compiled."""
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compiled.append((module, options))
    )
    model = tiny_model()
    size = model.config.vision.image_size
    model.encode(torch.randn(2, 3, size, size))
    assert not compiled
    with pytest.raises(ValueError, match=r"frame_batch must be a positive multiple .*, got 0"):
        model.compile_vision(0)
    assert not compiled
    model.compile_vision(2)
    options = {"dynamic": False, "backend": "inductor"}
    assert compiled == [(block, options) for block in model.vision.blocks]


@pytest.mark.long
@torch.no_grad()
def test_compiled_vision_agrees():
    model = tiny_model()
    size = model.config.vision.image_size
    pixels = torch.randn(4, 3, size, size)
    expected = model.vision(pixels)
    model.compile_vision(4)
    torch.testing.assert_close(model.vision(pixels), expected)
    torch._dynamo.reset()
