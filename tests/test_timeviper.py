"""TimeViper: upstream's generate on features, its arguments, saving and loading."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from tests.goldens import golden
from tests.random_model import square_video, tiny_model
from tests.tiny import TINY, TRANSV, tiny_backbone
from timeviper_fast import TimeViper, TimeViperConfig
from timeviper_fast.config import ProjectorConfig, VisionConfig


@pytest.fixture(scope="module")
def model() -> TimeViper:
    return tiny_model()


@pytest.fixture
def video(tmp_path):
    return square_video(tmp_path / "demo.mp4", seconds=12, fps=10, height=64, width=96)


def upstream_model() -> tuple[TimeViper, dict[str, torch.Tensor]]:
    data = golden("vlm_generate")
    vision = VisionConfig(
        image_size=70,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = TimeViper(TimeViperConfig(TINY, vision, ProjectorConfig("tome_mlp", 4), TRANSV))
    model.backbone = tiny_backbone(TRANSV)
    weights = {n.split(".", 2)[2]: t for n, t in data.items() if n.startswith("projector.")}
    model.projector.layers.load_state_dict(weights)
    return model.eval(), data


@pytest.mark.parametrize("chunk", [None, 17])
def test_upstream_generate(chunk):
    model, data = upstream_model()
    ids = data["input_ids"]
    [places] = (ids[0] == 100).nonzero(as_tuple=True)
    first, last = int(places[0]), int(places[-1])
    before = ids[:, :first]
    after = torch.cat([ids[:, last + 1 :], data["answer_prompt_ids"][None]], dim=1)
    with torch.no_grad():
        visual = model.projector(data["features"])
        torch.testing.assert_close(visual, data["visual_embeddings"], rtol=0, atol=1e-5)
        embeddings, _ = model.embed(before, visual, after)
        torch.testing.assert_close(embeddings, data["fused_embeddings"], rtol=0, atol=1e-5)
    result = model.generate(before, visual, after, max_new_tokens=6, chunk=chunk)
    assert torch.equal(result.token_ids[0].int(), data["generated"])
    assert [(s.before, s.after) for s in result.stages] == [(48, 24), (24, 9)]
    kept = data["stage0.kept"][data["stage1.kept"]]
    assert torch.equal(result.kept[0].int(), kept)


def test_eos_of_the_config_ends_an_answer(model, video):
    free = model.ask(video, "What?", policy="uniform:4", max_new_tokens=6)
    last = free.token_ids[2]
    config = replace(model.config.backbone, eos_token_ids=(256, last))
    stopping = TimeViper(replace(model.config, backbone=config), model.tokenizer).eval()
    stopping.load_state_dict(model.state_dict())
    answer = stopping.ask(video, "What?", policy="uniform:4", max_new_tokens=6)
    assert answer.finish == "stop"
    assert answer.token_ids == free.token_ids[: free.token_ids.index(last) + 1]


@pytest.mark.parametrize(
    ("before", "visual", "after", "words"),
    [
        (torch.zeros(1, 2), None, torch.zeros(1, 2).int(), r"before must be a tensor \(batch, n\)"),
        (torch.zeros(2).int(), None, torch.zeros(1, 2).int(), r"before must be a tensor \(batch"),
        (torch.zeros(2, 2).int(), None, torch.zeros(1, 2).int(), r"batch of before \(2\), got 1"),
        (
            torch.full((1, 2), 320),
            None,
            torch.zeros(1, 2).int(),
            r"before must lie in 0 .. 319, got 320 .. 320",
        ),
        (
            torch.zeros(1, 2).int(),
            None,
            torch.tensor([[5, -1]]),
            r"after must lie in 0 .. 319, got -1 .. 5",
        ),
        (
            torch.zeros(1, 2).int(),
            torch.zeros(4, 16, 128).double(),
            torch.zeros(1, 2).int(),
            r"visual must be of dtype torch.float32, got torch.float64",
        ),
        (
            torch.zeros(1, 2).int(),
            torch.zeros(4, 16, 64),
            torch.zeros(1, 2).int(),
            r"visual must be a tensor \(frames, n, 128\), got \(4, 16, 64\) torch.float32",
        ),
        (
            [[1]],
            None,
            torch.zeros(1, 2).int(),
            r"before must be a tensor \(batch, n\) .*, got list",
        ),
        (torch.zeros(1, 2).int(), None, None, "after must be a tensor .*, got NoneType"),
        (
            torch.zeros(1, 2).int(),
            [1],
            torch.zeros(1, 2).int(),
            "visual must be a tensor .*, got list",
        ),
    ],
)
def test_generate_checks_its_tensors(model, before, visual, after, words):
    with pytest.raises(ValueError, match=words):
        model.generate(before, visual, after, max_new_tokens=1)


def test_generate_wants_room_for_a_token(model):
    ids = torch.zeros(1, 2, dtype=torch.long)
    for wrong in (0, 2.5, True):
        words = f"max_new_tokens must be an integer of 1 or more, got {wrong}"
        with pytest.raises(ValueError, match=words):
            model.generate(ids, None, ids, max_new_tokens=wrong)


def test_generate_wants_a_sampling_or_nothing(model):
    ids = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"sampling must be a Sampling or None, got \{\}"):
        model.generate(ids, None, ids, sampling={})


@pytest.mark.parametrize("wrong", [5, None, "ab", [1.5], [-1], [320], [2**70], torch.tensor([1])])
def test_generate_stops_at_tokens_of_its_vocabulary(model, wrong, monkeypatch):
    monkeypatch.setattr(model, "embed", lambda *_: pytest.fail("the prompt is read"))
    ids = torch.zeros(1, 2, dtype=torch.long)
    words = f"stop_ids must be a collection of token ids in 0 .. 319, got {re.escape(repr(wrong))}"
    with pytest.raises(ValueError, match=words):
        model.generate(ids, None, ids, stop_ids=wrong)


@pytest.mark.parametrize("config", ["tiny", None, {}])
def test_a_model_is_made_of_a_config(config):
    with pytest.raises(ValueError, match=r"config must be a TimeViperConfig, got .*; preset"):
        TimeViper(config)


@pytest.mark.parametrize("device", ["xpu", "mps", "meta", "cpu:1", "gpu", 2.5])
def test_what_is_no_device_of_the_model(tmp_path, device):
    with pytest.raises(ValueError, match=f"^device must be cpu, cuda or cuda:N, got '{device}'$"):
        TimeViper.from_pretrained(tmp_path, device=device)


@pytest.mark.parametrize("path", [None, 5, True, b"model", [], "a\0b", "a" * 5000, "~no one/model"])
def test_what_is_no_path_of_a_model(model, path):
    value = re.escape(repr(path))
    with pytest.raises(ValueError, match=f"^checkpoint: path must be a usable path, got {value} "):
        TimeViper.from_pretrained(path)
    words = f"^save_pretrained: directory must be a usable path, got {value} "
    with pytest.raises(ValueError, match=words):
        model.save_pretrained(path)


def test_progress_is_a_function(model, tmp_path):
    with pytest.raises(ValueError, match=r"^from_pretrained: progress must be a function"):
        TimeViper.from_pretrained(tmp_path, progress=5)
    with pytest.raises(ValueError, match=r"^save_pretrained: progress must be a function"):
        model.save_pretrained(tmp_path / "new", progress=5)
    assert not (tmp_path / "new").exists()


def test_save_and_load_give_the_same_answer(model, video, tmp_path):
    truth = model.ask(video, "What moves?", max_new_tokens=6)
    model.save_pretrained(tmp_path / "tiny")
    loaded = TimeViper.from_pretrained(tmp_path / "tiny", device="cpu")
    assert loaded.dtype == torch.float32
    assert loaded.ask(video, "What moves?", max_new_tokens=6).token_ids == truth.token_ids
    half = TimeViper.from_pretrained(tmp_path / "tiny", device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.ask(video, "What moves?", max_new_tokens=2).text is not None
