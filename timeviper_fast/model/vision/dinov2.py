"""Frames to patch features: DINOv2, with or without registers.

Parameter names are timm's, but for the layer scales (timm: `gamma`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timeviper_fast.config import VisionConfig
from timeviper_fast.model.vision.blocks import Block, PatchEmbed
from timeviper_fast.model.vision.encoder import VisionEncoder, resize_grid

__all__ = ["DINOv2"]


class DINOv2(VisionEncoder):
    """Frames to features; a class token and registers are attended to, then dropped.

    x = [cls_token, reg_token, conv_p(pixels) + pos_embed]; per block:
    x += ls1 * attn(norm1(x)), x += ls2 * mlp(norm2(x)). There is no final norm.

    The class token has no position of its own, as in timm; it may be part of `cls_token`.

    Args:
        config: sizes, number of registers and the block whose output is the feature.

    Source: DINOv2 (arXiv 2304.07193), registers (arXiv 2309.16588).
    """

    def __init__(self, config: VisionConfig) -> None:
        blocks = [Block(config, scaled=True) for _ in range(config.num_blocks)]
        super().__init__(config, PatchEmbed(config), blocks)
        width, registers = config.hidden_size, config.register_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.pos_embed = nn.Parameter(torch.empty(1, config.patches_per_frame, width))
        nn.init.normal_(self.pos_embed, std=width**-0.5)

    def start(self, x: Tensor, frames: int) -> Tensor:
        tokens = [token for token in (self.cls_token, self.reg_token) if token is not None]
        before = [token.expand(len(x), -1, -1) for token in tokens]
        return torch.cat([*before, x + self.pos_embed], dim=1)

    def finish(self, x: Tensor) -> Tensor:
        return x[:, 1 + self.config.register_tokens :]

    def resize(self, before: int, after: int) -> None:
        grid = resize_grid(self.pos_embed, before, after, antialias=True)
        self.pos_embed = nn.Parameter(grid, requires_grad=self.pos_embed.requires_grad)
