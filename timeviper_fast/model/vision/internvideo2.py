"""Clips to patch features: InternVideo2-1B, an encoder of VideoChat-Flash and of TimeViper.

Parameter names are those of the checkpoints of both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timeviper_fast.config import VisionConfig
from timeviper_fast.model.vision.blocks import Attention, Block, TubePatchEmbed
from timeviper_fast.model.vision.encoder import VisionEncoder, resize_grid

__all__ = ["InternVideo2", "position_table"]


class InternVideo2(VisionEncoder):
    """Clips of frames to features; full space-time attention with a class token, which is dropped.

    x = [cls_token, conv_p(pixels)] + pos_embed; per block, with RMSNorm:
    x += ls1 * attn(norm1(x)), x += ls2 * mlp(norm2(x)). There is no final norm.

    Images take `img_pos_embed`. Both parameters begin as sine and cosine tables.

    Args:
        config: sizes, frames per clip and the block whose output is the feature.

    Source: InternVideo2 (arXiv 2403.15377).
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(
            config, TubePatchEmbed(config), [_block(config) for _ in range(config.num_blocks)]
        )
        rows, width = config.patches_per_frame, config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.clip_frames * rows, width))
        self.img_pos_embed = nn.Parameter(torch.empty(1, 1 + rows, width))
        self.reset_positions()

    @torch.no_grad()
    def reset_positions(self) -> None:
        """Set both position parameters to the tables that training begins with."""
        for name, table in self.tables().items():
            self.get_parameter(name).copy_(table)

    def tables(self) -> dict[str, Tensor]:
        """Parameters that may be computed where no checkpoint holds them."""
        config = self.config
        width, side = config.hidden_size, config.patches_per_side
        return {
            "pos_embed": position_table(width, side, config.clip_frames),
            "img_pos_embed": position_table(width, side, 1),
        }

    def start(self, x: Tensor, frames: int) -> Tensor:
        positions = self.img_pos_embed if frames == 1 else self.pos_embed
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x + positions

    def finish(self, x: Tensor) -> Tensor:
        return x[:, 1:]

    def resize(self, before: int, after: int) -> None:
        for name in ("pos_embed", "img_pos_embed"):
            old = self.get_parameter(name)
            grid = torch.cat([old[:, :1], resize_grid(old[:, 1:], before, after)], dim=1)
            setattr(self, name, nn.Parameter(grid, requires_grad=old.requires_grad))


def _block(config: VisionConfig) -> Block:
    return Block(config, _Attention(config), (_RMSNorm(config), _RMSNorm(config)), scaled=True)


class _RMSNorm(nn.Module):
    """Normalised in float32, cast back, then times the weight."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class _Attention(Attention):
    """Attention without biases; queries and keys are normalised over all heads together."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config, qkv_bias=False)
        self.q_norm, self.k_norm = _RMSNorm(config), _RMSNorm(config)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.q_norm(q), self.k_norm(k), v


def position_table(width: int, side: int, frames: int) -> Tensor:
    """The initial positions of a class token (zeros) and of a clip's patches.

    The first quarter of the channels holds sines, then cosines of the frame's number; the rest, in
    halves, those of the column and of the row. Computed in float32, as the checkpoints' were.

    Args:
        width: channels.
        side: patches per side of a frame.
        frames: frames of a clip; 1 is an image.

    Returns:
        (1, 1 + frames * side * side, width) float32 on the CPU.
    """
    time = width // 4
    space = (width - time) // 2
    t, y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32, device="cpu") for n in (frames, side, side)),
        indexing="ij",
    )
    table = torch.cat([_waves(t, time), _waves(x, space), _waves(y, space)], dim=-1)
    return F.pad(table.reshape(1, -1, width), (0, 0, 1, 0))


def _waves(places: Tensor, width: int) -> Tensor:
    """Sines, then cosines of each place at width / 2 frequencies."""
    exponents = torch.arange(width // 2, dtype=torch.float32, device="cpu") / (width / 2)
    angles = places[..., None] * (1 / 10000**exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
