"""C-RADIO against what transformers' and vLLM's recorded, at the sizes of its table and at others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.goldens import golden, manifest
from timeviper_fast.config import VisionConfig
from timeviper_fast.model.vision.radio import RADIO, interpolated

STEM = {
    "patch_generator.embedder.weight": "patch_embed.proj.weight",
    "patch_generator.video_embedder.weight": "video_embed.proj.weight",
    "patch_generator.pos_embed": "pos_embed",
    "patch_generator.cls_token.token": "prefix",
}
Tensors = dict[str, torch.Tensor]


def recorded_config() -> VisionConfig:
    """The shape of the recorded encoder."""
    about = manifest("nemotron_vl_encoder")["config"]
    return VisionConfig(
        kind="radio",
        image_size=about["image_size"],
        patch_size=about["patch_size"],
        hidden_size=about["hidden_size"],
        intermediate_size=about["mlp_ratio"] * about["hidden_size"],
        num_hidden_layers=about["num_hidden_layers"],
        num_attention_heads=about["num_attention_heads"],
        feature_layer=-1,
        register_tokens=about["num_cls_tokens"] + about["num_registers"],
        position_side=about["max_img_size"] // about["patch_size"],
    )


def our_weights(stored: Tensors) -> Tensors:
    """Recorded names to ours, by hand."""
    prefix = "vision_model.radio_model.model."
    names = {k: k.removeprefix(prefix) for k in stored if k.startswith(prefix)}
    return {STEM.get(name, name): stored[key] for key, name in names.items()}


def recorded() -> tuple[RADIO, Tensors]:
    stored = golden("nemotron_vl_encoder")
    model = RADIO(recorded_config())
    model.load_state_dict(our_weights(stored))
    return model, stored


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))


@pytest.mark.parametrize("case", range(6))
@torch.no_grad()
def test_equals_the_recorded_encoder(case: int) -> None:
    model, stored = recorded()
    pixels = stored[f"case{case}.pixel_values"]
    grid = model.grid(*pixels.shape[-2:])
    positions = model.positions(*grid)
    torch.testing.assert_close(positions, stored[f"case{case}.position"], rtol=0, atol=1e-6)
    close(model.start(model.embed(pixels, 1), 1), stored[f"case{case}.embeddings"])
    close(model(pixels), stored[f"case{case}.features"])


@torch.no_grad()
def test_positions_of_half_the_side_are_means_of_neighbours() -> None:
    table = torch.randn(1, 64, 5, generator=torch.Generator().manual_seed(2))
    got = interpolated(table, 8, 2, 1).reshape(2, 5)
    cells = table.reshape(8, 8, 5)
    # without antialiasing each value is the mean of the middle 2 x 2 of its 4 x 4 cells
    want = torch.stack([cells[a : a + 2, 1:3].mean((0, 1)) for a in (1, 5)])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert torch.equal(interpolated(table, 8, 8, 8), table)


@torch.no_grad()
def test_kept_positions_follow_the_table() -> None:
    model, _ = recorded()
    before = model.positions(4, 6)
    assert model.positions(4, 6) is before
    model.pos_embed.mul_(2)
    torch.testing.assert_close(model.positions(4, 6), 2 * before)
    model.load_state_dict({**model.state_dict(), "pos_embed": torch.ones(1, 144, 32)}, assign=True)
    assert bool((model.positions(4, 6) == 1).all())
    assert model.bfloat16().positions(4, 6).dtype == torch.bfloat16
    assert model.positions(6, 4).shape == (1, 24, 32)


def test_positions_learn() -> None:
    model, stored = recorded()
    for _ in range(2):
        model.zero_grad()
        model(stored["case1.pixel_values"]).square().sum().backward()
        assert model.pos_embed.grad is not None
        assert model.pos_embed.grad.abs().sum() > 0


@torch.no_grad()
def test_a_tubelet_is_a_patch_of_both_its_frames() -> None:
    """Its patch vector is the first frame's patch, then the second's, under a weight of its own."""
    config = replace(recorded_config(), clip_frames=2)
    model = RADIO(config).eval()
    frames = torch.randn(4, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    assert model(frames).shape == (2, 6, 32)
    assert model(frames, images=True).shape == (4, 6, 32)
    assert model.video_embed is not None
    weight = model.video_embed.proj.weight.reshape(32, 2, 3, 8, 8)
    parts = [
        torch.nn.functional.conv2d(frames[i::2], weight[:, i], stride=8).flatten(2).mT
        for i in (0, 1)
    ]
    want = parts[0] + parts[1] + model.positions(2, 3)
    torch.testing.assert_close(model.embed(frames, 2), want, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="pixels must come in whole clips of 2 frames, got 3"):
        model(frames[:3])


def test_frames_of_broken_patches_are_refused() -> None:
    model, _ = recorded()
    words = r"RADIO: pixels must be \(frames, 3, h, w\), h and w multiples of 8, got shape"
    for shape in ((1, 3, 60, 64), (1, 3, 64, 0), (1, 1, 64, 64)):
        with pytest.raises(ValueError, match=words):
            model(torch.zeros(shape))
