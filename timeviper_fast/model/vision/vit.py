"""Frames to patch features: a vision transformer that stops at the feature layer.

The encoders are SigLIP's; parameter names are timm's. The features are not normalised.
"""

from __future__ import annotations

import torch
from torch import nn

from timeviper_fast.config import VisionConfig
from timeviper_fast.model.vision.blocks import Block, PatchEmbed
from timeviper_fast.model.vision.encoder import VisionEncoder, resize_grid

__all__ = ["VisionTransformer"]


class VisionTransformer(VisionEncoder):
    """Pixels (frames, 3, S, S) -> features (frames, patches, hidden_size) of `feature_layer`.

    x = conv_p(pixels) + pos_embed;  per block: x += attn(norm1(x)), x += mlp(norm2(x))

    Args:
        config: sizes, activation and the block whose output is the feature.

    Source: SigLIP (arXiv 2303.15343), timm's VisionTransformer; upstream TimeViper takes the
        second-to-last block.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(
            config, PatchEmbed(config), [Block(config) for _ in range(config.num_blocks)]
        )
        self.pos_embed = nn.Parameter(torch.empty(1, config.patches_per_frame, config.hidden_size))
        nn.init.normal_(self.pos_embed, std=config.hidden_size**-0.5)

    def start(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        return x + self.pos_embed

    def resize(self, before: int, after: int) -> None:
        grid = resize_grid(self.pos_embed, before, after, antialias=True)
        self.pos_embed = nn.Parameter(grid, requires_grad=self.pos_embed.requires_grad)
