"""Frames or tubelets to patch features: C-RADIO, the encoder of NVIDIA's hybrid models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from timeviper_fast.config import VisionConfig
from timeviper_fast.model.vision.blocks import Block, LinearPatchEmbed
from timeviper_fast.model.vision.encoder import VisionEncoder

__all__ = ["RADIO", "interpolated"]


class RADIO(VisionEncoder):
    """Frames to features; a prefix of class tokens and registers is attended to, then dropped.

    x = [prefix, patches W + positions]; per block: x += attn(norm1(x)), x += mlp(norm2(x)).
    There is no final norm.

    Frames may have any whole, also oblong, grid of patches; their positions are cut out of one
    table that is resized. A patch of a video holds the same place of `config.clip_frames` frames (a
    tubelet) and is embedded by a weight of its own; the features are (tubelets, patches, .).

    Args:
        config: sizes, length of the prefix, positions per side of the table, frames per tubelet.

    Source: RADIO (arXiv 2312.06709), as in Nemotron Nano V2 VL (arXiv 2511.03929).
    """

    def __init__(self, config: VisionConfig) -> None:
        blocks = [Block(config) for _ in range(config.num_blocks)]
        super().__init__(config, LinearPatchEmbed(config, 1), blocks)
        clip, width = config.clip_frames, config.hidden_size
        self.video_embed = LinearPatchEmbed(config, clip) if clip > 1 else None
        self.prefix = nn.Parameter(torch.zeros(config.register_tokens, width))
        self.pos_embed = nn.Parameter(torch.empty(1, config.position_side**2, width))
        nn.init.normal_(self.pos_embed, std=width**-0.5)
        self._made: tuple[object, Tensor] | None = None

    def embed(self, pixels: Tensor, clip: int) -> Tensor:
        """Patches with their positions: (tubelets, patches, hidden_size)."""
        embed = self.patch_embed if clip == 1 or self.video_embed is None else self.video_embed
        x = embed(pixels)
        return x + self.positions(*self.grid(*pixels.shape[-2:])).to(x.dtype)

    def start(self, x: Tensor, frames: int) -> Tensor:
        return torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)

    def finish(self, x: Tensor) -> Tensor:
        return x[:, len(self.prefix) :]

    def split(self, x: Tensor, clip: int) -> Tensor:
        return x

    @property
    def sizes(self) -> str:
        return f"(frames, 3, h, w), h and w multiples of {self.config.patch_size}"

    def takes(self, height: int, width: int) -> bool:
        patch = self.config.patch_size
        return min(height, width) >= patch and height % patch == width % patch == 0

    def positions(self, rows: int, columns: int) -> Tensor:
        """(1, rows * columns, hidden_size) of the table's dtype.

        Without gradients the last result is kept until the grid or the table changes: the table of
        the released models is 84 MB in float32.
        """
        table, side = self.pos_embed, self.config.position_side
        if torch.is_grad_enabled() and table.requires_grad:
            return interpolated(table, side, rows, columns)
        version = 0 if table.is_inference() else table._version
        key = (rows, columns, id(table), version, table.data_ptr(), table.dtype, table.device)
        if self._made is None or self._made[0] != key:
            self._made = (key, interpolated(table, side, rows, columns))
        return self._made[1]


def interpolated(table: Tensor, side: int, rows: int, columns: int) -> Tensor:
    """The positions of a grid of patches: the table at the longer side's size, cut to the grid.

    Args:
        table: (1, side * side, channels), row by row.
        side: rows and columns of the table.
        rows, columns: of the grid.

    Returns:
        (1, rows * columns, channels) of the table's dtype. The square of max(rows, columns)
        positions per side is interpolated in float32, bilinearly and without antialiasing; its top
        left corner is returned.
    """
    longest = max(rows, columns)
    grid = rearrange(table, "one (h w) c -> one c h w", h=side)
    if longest != side:
        size = (longest, longest)
        grid = F.interpolate(grid.float(), size=size, mode="bilinear", align_corners=False)
    return rearrange(grid[..., :rows, :columns], "one c h w -> one (h w) c").to(table.dtype)
