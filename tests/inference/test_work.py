"""FLOPs against what hooks on every linear layer count, and torch's counter in the encoders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.inference.common import build
from tests.inference.opening import SCHEDULES, ask, config_of, linear_maps, opened
from timeviper_fast.config import VisionConfig
from timeviper_fast.inference.flow import flow
from timeviper_fast.inference.work import (
    decode_work,
    encoder_flops,
    linear_flops,
    open_work,
    projector_flops,
    question_work,
)
from timeviper_fast.model.experts import MixtureOfExperts
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.projector import Projector
from timeviper_fast.model.vision.build import build_encoder
from timeviper_fast.presets import preset

BEFORE, FRAMES, TEXT = 3, 6, 5


@pytest.mark.parametrize("name", SCHEDULES)
def test_opening_has_the_linear_maps_that_hooks_count(name):
    config = config_of(name)
    model = build(config.stages, config.backbone)
    with linear_maps(model) as counted:
        opened(config, BEFORE, FRAMES, model)
    work = open_work(config, BEFORE, FRAMES)
    # the transfer's part of opening is keys and values of dropped rows: linear maps too
    assert sum(counted) == work.linear + work.transfer
    assert not work.scores


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_question_has_the_linear_maps_that_hooks_count(name):
    config = config_of(name)
    video, rows = opened(config, BEFORE, FRAMES), flow(config, BEFORE, FRAMES)
    with linear_maps(video.backbone) as counted:
        ask(video, TEXT)
    below, above = question_work(config, BEFORE, FRAMES, TEXT)
    work, backbone = below.plus(above), config.backbone
    d = backbone.hidden_size
    q = backbone.num_attention_heads * backbone.head_dim
    kv = backbone.num_key_value_heads * backbone.head_dim
    told = [stage for stage in (*rows.below, *rows.above) if stage.transferred]
    scored = sum(stage.stage.select == "attention" for stage in rows.above)
    # the session keeps the keys of what stages in front of the asking one dropped
    dropped = sum(stage.transferred for stage in rows.above)
    besides = 2 * d * q * (TEXT * len(told) + scored) + 2 * 2 * d * kv * dropped
    assert sum(counted) == work.linear + work.head + besides
    attended = sum(4 * q * TEXT * stage.transferred for stage in told)
    out_and_query = 4 * d * q * TEXT * len(told)
    assert work.transfer == attended + out_and_query + 4 * d * kv * dropped


@pytest.mark.parametrize("latent", [0, 24])
def test_experts_have_the_flops_that_torch_counts(latent):
    """Of a token's own experts and not of the others."""
    made = {"num_experts": 8, "experts_per_token": 3, "expert_size": 20, "shared_expert_size": 28}
    backbone = replace(preset("tiny").backbone, pattern="E", expert_latent_size=latent, **made)
    layer = MixtureOfExperts(backbone)
    init_weights(layer, seed=1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, 17, backbone.hidden_size), None, None)
    assert counter.get_total_flops() == 17 * linear_flops(backbone, 0)


def test_attention_counts_the_pairs_that_the_causal_mask_allows():
    config = config_of("none")
    rows = BEFORE + config.visual_tokens(FRAMES)
    pairs = sum(range(1, rows + 1)), sum(range(rows + 1, rows + TEXT + 1))
    layers, q = 2, 4 * 32
    opened = open_work(config, BEFORE, FRAMES).attention
    below, above = question_work(config, BEFORE, FRAMES, TEXT)
    assert (opened, below.attention, above.attention) == (
        *(layers * 4 * q * number for number in pairs),
        0,
    )


def test_a_decode_step_is_one_more_row_of_every_layer():
    config = config_of("shipped")
    step = decode_work(config, BEFORE, FRAMES, seen=TEXT)
    longer = [sum(question_work(config, BEFORE, FRAMES, n), ()) for n in (TEXT, TEXT + 1)]
    linear = [numbers[0] + numbers[6] for numbers in longer]
    assert step.linear == linear[1] - linear[0]
    assert step.head == 2 * 128 * 320


KINDS = {
    "siglip": {},
    "dinov2": {"register_tokens": 4},
    "umt": {"clip_frames": 4, "resize": "pillow13"},
    "internvideo2": {"clip_frames": 4, "resize": "pillow13"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 6])
def test_encoders_have_the_flops_that_torch_counts(kind, frames):
    vision = replace(preset("tiny").vision, kind=kind, **KINDS[kind])
    projector = replace(preset("tiny").projector, clip_frames=vision.clip_frames)
    config = replace(preset("tiny"), vision=vision, projector=projector)
    filled = 1 if frames == 1 else -(-frames // config.clip_frames) * config.clip_frames
    model = build_encoder(vision)
    pixels = torch.randn(filled, 3, vision.image_size, vision.image_size)
    # torch's counter knows no fused attention of the CPU
    math = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), math, FlopCounterMode(display=False) as counter:
        model(pixels, images=frames == 1)
    assert counter.get_total_flops() == encoder_flops(config, frames)


@pytest.mark.parametrize("kind", ["tome_mlp", "fused_tome_mlp", "gelu_mlp"])
def test_projectors_have_the_flops_that_hooks_count(kind):
    config = preset("tiny")
    config = replace(config, projector=replace(config.projector, kind=kind))
    sizes = config.vision.hidden_size, config.backbone.hidden_size
    model = Projector(config.projector, *sizes)
    with torch.no_grad(), linear_maps(model) as counted:
        model(torch.randn(6, config.vision.patches_per_frame, sizes[0]))
    assert sum(counted) == projector_flops(config, 6)


def test_an_encoder_is_built_up_to_its_feature_layer():
    deep, cut = VisionConfig(feature_layer=-1), VisionConfig()
    config = preset("nemotron-nano-9b-v2")
    flops = [encoder_flops(replace(config, vision=vision), 1) for vision in (deep, cut)]
    assert (flops[0] - flops[1]) * 26 == flops[1] - 729 * 2 * 3 * 14**2 * 1152
