"""A model with a mixture of experts, from saving it to asking it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.inference.one_go import digest
from timeviper_fast import TimeViper
from timeviper_fast.config import CompressionStage
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.text.byte_tokenizer import byte_tokenizer

FRAMES = torch.randint(
    0, 255, (6, 98, 98, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
BIASES = [f"backbone.layers.{layer}.mixer.gate.e_score_correction_bias" for layer in (1, 4)]


@pytest.fixture(scope="module")
def model() -> TimeViper:
    tiny = preset("tiny")
    backbone = replace(
        tiny.backbone,
        pattern="ME*MEM*-",
        num_experts=8,
        experts_per_token=3,
        expert_size=48,
        shared_expert_size=64,
        expert_scale=2.5,
    )
    stages = (
        CompressionStage(1, "uniform", 0.5),
        CompressionStage(6, "attention", 0.3, transfer=False),
    )
    made = TimeViper(replace(tiny, backbone=backbone, stages=stages), byte_tokenizer())
    init_weights(made, seed=4)
    for name in BIASES:
        made.get_buffer(name).uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(5))
    return made.eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_the_correction_bias_keeps_its_bits(model, tmp_path, dtype):
    model.save_pretrained(tmp_path / "m")
    loaded = TimeViper.from_pretrained(tmp_path / "m", dtype=dtype)
    assert loaded.config == model.config
    for name in BIASES:
        assert torch.equal(loaded.get_buffer(name), model.get_buffer(name))
    weight = "backbone.layers.1.mixer.experts.up_proj"
    want = model.get_parameter(weight).to(getattr(torch, dtype))
    assert torch.equal(loaded.get_parameter(weight), want)


def test_sessions_files_and_several_questions_answer_alike(model, tmp_path):
    questions, options = ["What moves?", "Why?"], {"chunk": 32, "frame_batch": 4}
    session = model.open(FRAMES, policy="fps:1", **options)
    session.save(tmp_path / "a.session")
    loaded = model.load_session(tmp_path / "a.session")
    assert digest(loaded._ended) == digest(session._ended)
    together = session.ask(questions, max_new_tokens=4)
    for question, answer in zip(questions, together):
        afresh = model.ask(FRAMES, question, policy="fps:1", max_new_tokens=4, **options)
        assert answer.token_ids == afresh.token_ids
        assert loaded.ask(question, max_new_tokens=4).token_ids == afresh.token_ids
        assert answer.stages[-1].after == 28


def test_a_session_refuses_another_correction_bias(model):
    """No gradient moves it, but training that balances the experts does."""
    session = model.open(FRAMES[:2], policy="fps:1")
    bias = model.get_buffer(BIASES[1])
    bias += 0.5
    try:
        with pytest.raises(ValueError, match="have the weights with which the video was read"):
            session.ask("Why?", max_new_tokens=2)
    finally:
        bias -= 0.5
