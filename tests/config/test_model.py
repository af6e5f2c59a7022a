"""The whole configuration: every broken rule has its sentence, no field takes another kind."""

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
)
from timeviper_fast.layout import Segment, VisualSpan


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: TimeViperConfig(projector=ProjectorConfig(clip_frames=64, image_tokens=1024)),
            "projector.image_tokens must be at most the 729 patches of a frame, got 1024",
        ),
        (
            lambda: TimeViperConfig(vision=VisionConfig(kind="umt", clip_frames=4)),
            r"projector.clip_frames must be a multiple of vision.clip_frames \(4\), got 1",
        ),
        (
            lambda: TimeViperConfig(projector=ProjectorConfig(num_tokens=730)),
            "projector.num_tokens must be at most the 729 patches of a frame, got 730",
        ),
        (
            lambda: TimeViperConfig(projector=ProjectorConfig(merge_heads=7)),
            "projector.merge_heads must divide vision.hidden_size",
        ),
        (lambda: TimeViperConfig(template="chatml"), "template must be one of 'nano_base'"),
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
    tuple[int, int] | None: [3, (3,), (2, 4, 6), (2, 3), (0, 2), (2.0, 4), (True, 2), [2, 4]],
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


def test_visual_tokens_of_shuffled_patches_and_of_tubelets():
    tower = VisionConfig(kind="radio", image_size=96, patch_size=16, position_side=8)
    shuffle = ProjectorConfig(kind="pixel_shuffle_mlp", inner_size=8)
    config = TimeViperConfig(vision=tower, projector=shuffle)
    assert [config.visual_tokens(n) for n in (1, 2, 7)] == [9, 18, 63]
    assert config.merged_size == 4 * tower.hidden_size
    pairs = replace(config, vision=replace(tower, clip_frames=2))
    # 2 frames are one grid of patches; the last one is filled up
    assert [pairs.visual_tokens(n) for n in (1, 2, 7)] == [9, 9, 36]
    assert pairs.frame_tokens(7) == 9
    with pytest.raises(ValueError, match=r"patches_per_side must be even for projector\.kind='pix"):
        replace(config, vision=replace(tower, image_size=80))
