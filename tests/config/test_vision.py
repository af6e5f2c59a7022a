"""The encoder's and the projector's configuration: every broken rule has its sentence, and frames
keep their aspect by the recorded rule."""

from __future__ import annotations

import pytest

from tests.goldens import manifest
from timeviper_fast.config import ProjectorConfig, VisionConfig


@pytest.mark.parametrize(
    ("build", "words"),
    [
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
            lambda: VisionConfig(kind="radio", image_size=64, patch_size=16),
            "position_side must be above 0 for kind='radio', got 0",
        ),
        (lambda: VisionConfig(position_side=9), "position_side must be 0 for kind='siglip', got 9"),
        (
            lambda: VisionConfig(kind="radio", position_side=8),
            r"image_size must be a multiple of patch_size \(14\) for kind='radio', got 384",
        ),
        (
            lambda: VisionConfig(resize="float_aspect"),
            "kind must be 'radio' for resize='float_aspect', got 'siglip'",
        ),
        (
            lambda: VisionConfig(frame_grid=(2, 4)),
            "frame_grid must be None for resize='naive', got",
        ),
        (
            lambda: ProjectorConfig(kind="pixel_shuffle_mlp"),
            "inner_size must be above 0 for kind='pixel_shuffle_mlp', got 0",
        ),
        (lambda: ProjectorConfig(inner_size=8), "inner_size must be 0 for kind='tome_mlp', got 8"),
        (lambda: ProjectorConfig(num_tokens=0), "num_tokens must be a positive integer .*, got 0"),
    ],
)
def test_sentences(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("std", [(0.5, 0.5, 0.0), (0.5, 0.5, -1.0)])
def test_pixels_are_not_divided_by_zero(std):
    with pytest.raises(ValueError, match="image_std must be a tuple of 3 finite numbers above 0"):
        VisionConfig(image_std=std)


ASPECT = VisionConfig(
    kind="radio", image_size=512, patch_size=16, position_side=128, resize="float_aspect"
)
GRIDS = manifest("nemotron_vl_resize")


@pytest.mark.parametrize("row", GRIDS["grids_of_1024_patches"], ids=str)
def test_frames_keep_their_aspect(row):
    grid = (row["grid_rows"], row["grid_cols"])
    seen = ASPECT.seeing(row["rows"], row["cols"])
    assert seen.frame_grid == grid
    assert seen.frame_size == (16 * grid[0], 16 * grid[1])
    assert seen.patches_per_frame == 4 * row["tokens"]


def test_thin_frames_exceed_the_target():
    seen = ASPECT.seeing(3000, 90)
    assert seen.frame_grid == (184, 6)
    # more than the 1,024 patches of the square
    assert seen.patches_per_frame == 1104
    assert ASPECT.seeing(90_000, 1).frame_grid[1] == 2


def test_the_size_of_frames_must_be_known():
    assert ASPECT.patches_per_frame == 1024
    words = r"frame_grid must be known where frames keep their aspect .*; take config.seeing"
    with pytest.raises(ValueError, match=words):
        ASPECT.frame_size  # noqa: B018
    square = VisionConfig()
    assert square.seeing(1080, 1920) is square
    assert square.frame_size == (384, 384)
