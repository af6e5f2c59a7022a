"""The parts that vision transformers share, against plain formulas."""

from __future__ import annotations

import torch

from timeviper_fast.config import VisionConfig
from timeviper_fast.model.vision.blocks import LayerScale, TubePatchEmbed


@torch.no_grad()
def test_a_tube_of_one_frame_is_a_convolution_in_three_dimensions() -> None:
    embed = TubePatchEmbed(VisionConfig(patch_size=7, hidden_size=16, image_size=30))
    pixels = torch.randn(4, 3, 30, 30)
    want = embed.proj(pixels.transpose(0, 1)[None])[0].flatten(2).permute(1, 2, 0)
    torch.testing.assert_close(embed(pixels), want)


@torch.no_grad()
def test_layer_scale_multiplies_in_float32() -> None:
    """With a bfloat16 product of a float32 weight, 1 + 2^-9 would be rounded away first."""
    scale = LayerScale(2)
    scale.weight.copy_(torch.tensor([1 + 2**-9, 3.0]))
    x = torch.tensor([[129.0, 2.0]], dtype=torch.bfloat16)
    got = scale(x)
    assert got.dtype == torch.bfloat16
    assert got.tolist() == (x.float() * scale.weight).bfloat16().tolist()
