"""Clips to patch features: UMT (Unmasked Teacher), the encoder of VideoChat-Flash.

Parameter names are those of VideoChat-Flash's checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from timeviper_fast.config import VisionConfig
from timeviper_fast.model.vision.blocks import Attention, Block, TubePatchEmbed
from timeviper_fast.model.vision.encoder import VisionEncoder, resize_grid

__all__ = ["UMT", "position_table"]

# The shape of the table that all others are made of: 4 frames of 14 x 14 patches.
_FRAMES, _SIDE = 4, 14


class UMT(VisionEncoder):
    """Clips of frames to features; full space-time attention, no class token, a final LayerNorm.

    x = conv_p(pixels) + positions; blocks as SigLIP's, without key bias; vision_layernorm(x)

    The positions are computed and not stored. An image takes the first frame's.

    Args:
        config: sizes, frames per clip and the block whose output is the feature.

    Source: UMT (arXiv 2303.16058), as in VideoChat-Flash (arXiv 2501.00574).
    """

    positions: Tensor

    def __init__(self, config: VisionConfig) -> None:
        blocks = [Block(config, _Attention(config)) for _ in range(config.num_blocks)]
        super().__init__(config, TubePatchEmbed(config), blocks)
        self.vision_layernorm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self._set_positions()

    def start(self, x: Tensor, frames: int) -> Tensor:
        return x + self.positions[:, : x.shape[1]].to(x.dtype)

    def finish(self, x: Tensor) -> Tensor:
        return self.vision_layernorm(x)

    def resize(self, before: int, after: int) -> None:
        self._set_positions()

    def _set_positions(self) -> None:
        config, device = self.config, self.patch_embed.proj.weight.device
        table = position_table(config.hidden_size, config.patches_per_side, config.clip_frames)
        # under the meta device the table is real, since no checkpoint holds it
        table = table if device.type == "meta" else table.to(device)
        self.register_buffer("positions", table, persistent=False)


class _Attention(Attention):
    """Attention with biases of queries and values, and none of keys."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config, qkv_bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.v_bias = nn.Parameter(torch.zeros(config.hidden_size))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, self.qkv.weight, bias).chunk(3, dim=-1)


def position_table(width: int, side: int, frames: int) -> Tensor:
    """Sine and cosine positions of a clip's patches, time first, then rows, then columns.

    The table of 4 frames of 14 x 14 patches numbers its rows through. Row r, channel j has the
    angle r / 10000^(2 floor(j / 2) / width), and its sine for even j, its cosine for odd j. Another
    number of patches resizes each frame (bicubic); another number of frames interpolates over time
    (linear).

    Args:
        width: channels.
        side: patches per side of a frame.
        frames: frames of a clip.

    Returns:
        (1, frames * side * side, width) float32 on the CPU.
    """
    rows = torch.arange(_FRAMES * _SIDE**2, dtype=torch.float64, device="cpu")
    pairs = torch.arange(width, dtype=torch.float64, device="cpu").div(2, rounding_mode="floor")
    angles = rows[:, None] / 10000 ** (2 * pairs / width)
    odd = torch.arange(width, device="cpu") % 2 == 1
    table = torch.where(odd, angles.cos(), angles.sin()).float()[None]
    if frames not in (1, _FRAMES):
        series = rearrange(table, "one (t p) c -> one (p c) t", t=_FRAMES)
        series = F.interpolate(series, size=frames, mode="linear")
        table = rearrange(series, "one (p c) t -> one (t p) c", c=width)
    elif frames == 1:
        table = table[:, : _SIDE**2]
    return resize_grid(table, _SIDE, side)
