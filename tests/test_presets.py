"""Presets are the published models: parameters and attention layers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from timeviper_fast.inference.facts import model_facts
from timeviper_fast.inference.memory import fork_bytes, weights
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.presets import LLM_PRESETS, preset
from timeviper_fast.text.byte_tokenizer import SPECIAL_TOKENS


@pytest.mark.parametrize(
    ("name", "parameters", "attention_layers"),
    [
        ("nemotron-nano-9b-v2", 8_888_227_328, (14, 21, 30, 39)),
        ("nemotron-nano-12b-v2", 12_310_001_152, (7, 16, 25, 34, 43, 52)),
        ("nemotron-h-8b", 8_100_852_736, (7, 18, 29, 40)),
        # Qwen2.5-7B, as its card counts
        ("timeviper-qwen2.5-7b", 7_615_616_512, tuple(range(0, 56, 2))),
    ],
)
def test_presets_have_the_published_size(name, parameters, attention_layers):
    config = preset(name)
    with torch.device("meta"):
        model = HybridBackbone(config.backbone)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert config.backbone.layers_of("*") == attention_layers


def c_radio_and_projector(width: int, inner: int, prefix: int, frames: int) -> int:
    """Parameters of C-RADIO-H and of the projector, by the shapes of the released files."""
    c, f, patch = 1280, 5120, 3 * 16 * 16
    block = 4 * c + 3 * c * c + 3 * c + c * c + c + f * c + f + c * f + c
    embedders = patch * c + (frames * patch * c if frames > 1 else 0)
    tower = embedders + 128 * 128 * c + prefix * c + 32 * block
    return tower + 4 * c + inner * 4 * c + width * inner


@pytest.mark.parametrize(
    ("name", "llm", "per_token", "whole"),
    [
        # 13.2e9 parameters, 26.4 GB
        ("nemotron-nano-12b-v2-vl", 12_320_486_912, 12_320_486_912, 13_181_860_352),
        # 31.6e9 parameters, 3.6e9 of them for a token; the whole model without audio
        ("nemotron-3-nano-omni-30b-a3b", 31_577_937_344, 3_580_073_408, 32_391_461_824),
    ],
)
def test_nvidias_video_models_have_the_sizes_of_their_files(name, llm, per_token, whole):
    config = preset(name)
    facts = model_facts(config)
    assert facts["llm_parameters"] == llm
    assert facts.get("llm_parameters_per_token", llm) == per_token
    parts = config.backbone.hidden_size, config.projector.inner_size
    clip = config.vision.clip_frames
    tower = c_radio_and_projector(*parts, config.vision.register_tokens, clip)
    assert facts["vision_parameters"] + facts["projector_parameters"] == tower
    assert llm + tower == whole


def test_the_12b_video_model_holds_what_its_card_and_its_window_imply():
    """24.6 kB of keys and values for a token, 147 MB of scan states, 26.4 GB of weights."""
    config = preset("nemotron-nano-12b-v2-vl")
    plain = replace(config, stages=())
    one, two = (fork_bytes(plain, 0, 1, 0, new) for new in (1, 2))
    assert two["tails"] - one["tails"] == 24_576
    rings = 28 * (config.backbone.conv_dim * 4 * 2 + 4)
    assert one["states"] - rings == 146_800_640
    assert round(weights(config).nbytes("bfloat16") / 1e9, 1) == 26.4
    assert config.backbone.max_position_embeddings * 24_576 < 3.3e9


def umt_and_projector(width: int) -> int:
    """Parameters of UMT-L's 23 blocks and of the projector, by the shapes of the released files."""
    c, f = 1024, 4096
    block = 4 * c + 3 * c * c + 2 * c + c * c + c + f * c + f + c * f + c
    tower = c * 3 * 16 * 16 + c + 23 * block + 2 * c
    return tower + c * width + width + width * width + width


@pytest.mark.parametrize(
    ("llm", "published"), [("qwen2.5-1.5b", 2_071_502_336), ("qwen2-7b", 7_922_617_856)]
)
def test_llms_fill_videochat_flash_up_to_its_published_size(llm, published):
    config = LLM_PRESETS[llm]
    with torch.device("meta"):
        model = HybridBackbone(config)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters + umt_and_projector(config.hidden_size) == published


@pytest.mark.parametrize(
    ("name", "published", "tensors", "patches"),
    [
        ("videochat-flash-2b-448", 2_071_502_336, 646, 784),
        ("videochat-flash-7b-224", 7_922_617_856, 646, 196),
        ("videochat-flash-7b-448", 7_922_617_856, 646, 784),
        ("videochat-flash-7b-internvideo2", 8_620_852_736, 855, 256),
    ],
)
def test_videochat_flash_has_its_published_size(name, published, tensors, patches):
    """Parameters of the whole model. A released file stores as many tensors as ours has."""
    config = preset(name)
    with torch.device("meta"):
        model = TimeViperNetwork(config)
    assert sum(p.numel() for p in model.parameters()) == published
    assert len(model.state_dict()) == tensors
    assert config.vision.patches_per_frame == patches
    # 512 frames are 8,192 tokens, and an image has 64
    assert (config.visual_tokens(512), config.visual_tokens(1)) == (8192, 64)


def test_transv_of_the_9b_has_about_100m_parameters():
    config = preset("nemotron-nano-9b-v2")
    with torch.device("meta"):
        model = HybridBackbone(config.backbone, config.stages)
    assert sum(p.numel() for p in model.transv.parameters()) == 2 * (55_050_240 + 1)


def test_tied_embeddings_are_counted_once():
    with torch.device("meta"):
        tied = HybridBackbone(replace(preset("tiny").backbone, tie_word_embeddings=True))
        free = HybridBackbone(preset("tiny").backbone)
    size = tied.embeddings.weight.numel()
    counts = [sum(p.numel() for p in model.parameters()) for model in (tied, free)]
    assert counts[1] - counts[0] == size


def test_the_model_of_the_synthetic_world_fits_the_wheel():
    """1.02 million parameters, 2 MiB in bf16; its vocabulary is the byte tokenizer's."""
    config = preset("tiny-trained")
    with torch.device("meta"):
        model = TimeViperNetwork(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.02e6, rel=0.02)
    assert config.backbone.vocab_size == 256 + len(SPECIAL_TOKENS)
    assert config.tokens_per_frame == 4
    assert config.stages[1].score == "normed"
    # no attention layer runs before the stage that selects by attention
    assert config.stages[1].layer == config.backbone.layers_of("*")[0]


@pytest.mark.parametrize("name", ["7b", []])
def test_an_unknown_name_is_refused(name):
    words = rf"preset: name must be one of 'nemotron-nano-9b-v2'.*, got {re.escape(repr(name))}"
    with pytest.raises(ValueError, match=words):
        preset(name)
