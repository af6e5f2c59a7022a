"""Configurations: every broken rule has its sentence, and no field takes another kind of value."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Literal, get_origin, get_type_hints

import pytest
import torch

from timeviper_fast.config import (
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
    check_stages,
)
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.presets import LLM_PRESETS, preset

TINY = preset("tiny")
QWEN2 = LLM_PRESETS["qwen2-7b"]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CompressionStage(3, "uniform", 0), r"keep must lie in \(0, 1\], got 0"),
        (lambda: CompressionStage(3, "uniform", 1.5), r"keep must lie in \(0, 1\], got 1.5"),
        (lambda: CompressionStage(3, "uniform", float("nan")), r"keep must lie in .* got nan"),
        (lambda: CompressionStage(-1, "uniform", 0.5), "layer must be an integer of 0 .* got -1"),
        (lambda: CompressionStage(3, "uniform", True), r"keep must lie in \(0, 1\], got True"),
        (lambda: CompressionStage(3, "uniform", 0.5, "no"), "transfer must be True or .* got 'no'"),
        (
            lambda: CompressionStage(3, "random", 0.5),
            "select must be one of 'uniform', 'attention'",
        ),
        (
            lambda: replace(TINY, stages=(CompressionStage(12, "uniform", 0.5),)),
            r"stages\[0\]: layer must be at most 11, the last layer, got 12",
        ),
        (
            lambda: replace(TINY, stages=(CompressionStage(5, "attention", 0.5),)),
            r"stages\[0\]: layer must be an attention layer \(3, 8\) .* got '5 \(M\)'",
        ),
        (
            lambda: replace(TINY, stages=(CompressionStage(5, "uniform", 0.5),) * 2),
            r"stages\[1\]: layer must lie behind the stage before it \(layer 5\), got 5",
        ),
        (
            lambda: replace(
                TINY,
                stages=(CompressionStage(2, "uniform", 0.2), CompressionStage(5, "uniform", 0.5)),
            ),
            r"stages\[1\]: keep must not exceed the stage before it \(0.2\), got 0.5",
        ),
        (lambda: BackboneConfig(pattern="MX"), "pattern must be .* letters M, .* got 'MX'"),
        (lambda: BackboneConfig(pattern=""), "pattern must be a non-empty string"),
        (lambda: BackboneConfig(hidden_size=0), "hidden_size must be a positive integer .*, got 0"),
        (lambda: BackboneConfig(head_dim=True), "head_dim must be a positive integer .*, got True"),
        (
            lambda: BackboneConfig(num_key_value_heads=7),
            r"num_key_value_heads must divide num_attention_heads \(40\), got 7",
        ),
        (
            lambda: BackboneConfig(n_groups=3),
            r"n_groups must divide mamba_num_heads \(128\), got 3",
        ),
        (
            lambda: BackboneConfig(vocab_size=100, eos_token_ids=(2, 100)),
            r"eos_token_ids must lie below vocab_size \(100\), got \(2, 100\)",
        ),
        (
            lambda: BackboneConfig(rope_theta=1e6),
            "rope_theta must be 0 for family='nemotron_h', got 1000000.0",
        ),
        (
            lambda: BackboneConfig(family="llama"),
            "family must be one of 'nemotron_h', 'qwen2', got 'llama'",
        ),
        (
            lambda: replace(QWEN2, pattern="*--*"),
            r"pattern must repeat \*- for family='qwen2', got '\*--\*'",
        ),
        (
            lambda: replace(QWEN2, pattern="*-*"),
            r"pattern must repeat \*- for family='qwen2', got '\*-\*'",
        ),
        (
            lambda: replace(QWEN2, rope_theta=0),
            "rope_theta must be above 0 for family='qwen2', got 0",
        ),
        (lambda: replace(QWEN2, head_dim=63), "head_dim must be even for family='qwen2', got 63"),
        (
            lambda: check_stages((CompressionStage(3, "uniform", 0.5),), QWEN2),
            r"stages\[0\]: layer must be a multiple of 2, the layers of a block, got 3",
        ),
        (
            lambda: CompressionStage(2, "uniform", 0.5, spacing="floor"),
            "spacing must be one of 'exact', 'linspace', got 'floor'",
        ),
        (lambda: preset([]), r"preset: name must be one of .*, got \[\]"),
        (
            lambda: BackboneConfig(time_step_limit=(1, 0)),
            "time_step_limit must be a tuple .low, high.",
        ),
        (
            lambda: BackboneConfig(norm_eps=0.0),
            "BackboneConfig: norm_eps must be a finite number above 0, got 0.0",
        ),
        (
            lambda: replace(TINY, stages=(3,)),
            r"stages\[0\] must be a CompressionStage, got 3",
        ),
        (
            lambda: VisionConfig(num_attention_heads=7),
            "num_attention_heads must divide hidden_size",
        ),
        (lambda: VisionConfig(patch_size=400), "patch_size must be at most image_size"),
        (lambda: VisionConfig(feature_layer=27), "feature_layer must name one of the 27 blocks"),
        (lambda: VisionConfig(hidden_act="relu"), "hidden_act must be one of 'gelu'"),
        (lambda: VisionConfig(resize="stretch"), "resize must be one of 'naive'"),
        (lambda: ProjectorConfig(kind="qformer"), "kind must be one of 'gelu_mlp'"),
        (lambda: ProjectorConfig(token_order="size"), "token_order must be one of 'raw'"),
        (lambda: VisionConfig(kind="clip"), "kind must be one of 'siglip', 'dinov2', 'umt', 'int"),
        (lambda: VisionConfig(clip_frames=4), "clip_frames must be 1 for kind='siglip', got 4"),
        (
            lambda: VisionConfig(kind="umt", register_tokens=4),
            "register_tokens must be 0 for kind='umt', got 4",
        ),
        (
            lambda: ProjectorConfig(image_tokens=64),
            r"image_tokens must be num_tokens \(16\) or None, for an image is a clip .*, got 64",
        ),
        (
            lambda: TimeViperConfig(projector=ProjectorConfig(clip_frames=64, image_tokens=1024)),
            "projector.image_tokens must be at most the 729 patches of a frame, got 1024",
        ),
        (
            lambda: TimeViperConfig(vision=VisionConfig(kind="umt", clip_frames=4)),
            r"projector.clip_frames must be a multiple of vision.clip_frames \(4\), got 1",
        ),
        (lambda: ProjectorConfig(num_tokens=0), "num_tokens must be a positive integer .*, got 0"),
        (
            lambda: TimeViperConfig(projector=ProjectorConfig(num_tokens=730)),
            "projector.num_tokens must be at most the 729 patches of a frame, got 730",
        ),
        (
            lambda: TimeViperConfig(projector=ProjectorConfig(merge_heads=7)),
            "projector.merge_heads must divide vision.hidden_size",
        ),
        (lambda: TimeViperConfig(template="chatml"), "template must be one of 'nano_base'"),
        (lambda: preset("7b"), "preset: name must be one of 'nemotron-nano-9b-v2'"),
        (
            lambda: Segment(5, VisualSpan(3, 4)),
            "span must lie inside the sample's 5 tokens",
        ),
        (
            lambda: Segment(5, VisualSpan(1, 2), query_from_end=2),
            "query_from_end must point at one of the 2 tokens after the span, got 2",
        ),
    ],
)
def test_sentences(build, words):
    with pytest.raises(ValueError, match=words):
        build()


INTEGERS = [1.0, True, "1", None, math.nan]
NUMBERS = ["x", "1e-5", None, True, math.nan, math.inf, [1.0], -1]
WRONG: dict[type, list] = {
    bool: ["no", "false", 0, 1, None],
    int: INTEGERS,
    int | None: ["64", 0, -1, 2.0, True],
    float: NUMBERS,
    str: [7, None, ["M"], math.inf, ""],
    tuple[float, float]: [None, 0.5, (0.0, 1.0, 2.0), (0.0,), [0.0, 1.0], (-1.0, 1.0),
                          (1.0, 0.0), ("a", "b"), (0.0, math.nan), (math.inf, math.inf), ()],
    tuple[float, float, float]: [None, 0.5, "abc", (0.5, 0.5), [0.5] * 3, ("a", "b", "c"),
                                 (0.5, 0.5, math.inf), (0.5, 0.5, True)],
    tuple[int, ...]: [2, None, ("x",), (-1,), (True,), (2.0,), [2]],
    tuple[CompressionStage, ...]: [None, 3, [], "uni_7_0.5"],
    torch.Tensor | None: [3, [0], torch.zeros(1, 0), torch.zeros(0).long(), torch.zeros(1, 2).long()],
}  # fmt: skip
LEAST = {
    VisualSpan: VisualSpan(0, 0),
    Segment: Segment(1),
    CompressionStage: CompressionStage(1, "uniform", 0.5),
    BackboneConfig: BackboneConfig(),
    VisionConfig: VisionConfig(),
    ProjectorConfig: ProjectorConfig(),
    TimeViperConfig: TimeViperConfig(),
}
FIELDS = [
    pytest.param(kind, name, hint, id=f"{kind.__name__}.{name}")
    for kind in LEAST
    for name, hint in get_type_hints(kind).items()
]


@pytest.mark.parametrize(("kind", "name", "hint"), FIELDS)
def test_no_field_takes_a_value_of_another_kind(kind, name, hint):
    """The sentence names the owner, the field, the rule and the value; for every field there is."""
    hint = str if get_origin(hint) is Literal else hint
    for wrong in WRONG.get(hint, [None, 3, {}, []]):
        words = re.escape(f"{kind.__name__}: {name} must ") + ".+" + re.escape(f", got {wrong!r}")
        with pytest.raises(ValueError, match=words):
            replace(LEAST[kind], **{name: wrong})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (BackboneConfig, {"time_step_floor": 0, "norm_eps": 1, "eos_token_ids": ()}),
        (BackboneConfig, {"time_step_limit": (0, 0)}),
        (BackboneConfig, {"vocab_size": 3, "eos_token_ids": (0, 2)}),
        (BackboneConfig, {"time_step_limit": (0.5, math.inf)}),
        (VisionConfig, {"image_mean": (0, -1.5, 0.5), "image_std": (1, 2, 0.5)}),
        (VisionConfig, {"feature_layer": 0}),
        (CompressionStage, {"keep": 1, "layer": 0}),
    ],
)
def test_legal_values_at_the_edge(kind, changes):
    made = replace(LEAST[kind], **changes)
    assert all(getattr(made, name) == value for name, value in changes.items())


@pytest.mark.parametrize("std", [(0.5, 0.5, 0.0), (0.5, 0.5, -1.0)])
def test_pixels_are_not_divided_by_zero(std):
    with pytest.raises(ValueError, match="image_std must be a tuple of 3 finite numbers above 0"):
        VisionConfig(image_std=std)


def test_keep_counts_are_float64_and_may_be_zero():
    # 45 frames x 16 tokens at 0.7: float32 would say 504
    assert CompressionStage(1, "uniform", 0.7).kept_count(720) == 503
    assert CompressionStage(1, "uniform", 0.29).kept_count(100) == 28
    assert CompressionStage(1, "uniform", 0.1).kept_count(9) == 0


def test_visual_tokens_of_clips_and_of_an_image():
    """A clip of 4 frames gives 64 tokens and is filled up; an image gives 64 alone."""
    config = TimeViperConfig(
        vision=VisionConfig(kind="umt", clip_frames=4),
        projector=ProjectorConfig(clip_frames=4, image_tokens=64),
    )
    assert [config.visual_tokens(frames) for frames in (1, 2, 4, 5)] == [64, 64, 64, 128]
    patches = replace(config, projector=ProjectorConfig("gelu_mlp"))
    assert [patches.visual_tokens(frames) for frames in (1, 5)] == [729, 8 * 729]
    assert [TimeViperConfig().visual_tokens(frames) for frames in (1, 5)] == [16, 80]
