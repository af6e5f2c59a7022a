"""What every vision encoder has in common: frames or clips in, patch features out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from timeviper_fast.config import VisionConfig
from timeviper_fast.errors import ArgumentError
from timeviper_fast.model.vision.blocks import LinearPatchEmbed, PatchEmbed, TubePatchEmbed

__all__ = ["VisionEncoder", "resize_grid"]


class VisionEncoder(nn.Module):
    """Pixels (frames, 3, S, S) -> features (frames, patches, hidden_size) of `feature_layer`.

    A video's frames are encoded in clips of `config.clip_frames`: the tokens of a clip attend to
    each other, time first, then rows, then columns. With `images=True` each frame is an image, a
    clip of its own. Nothing crosses clips, so a video may be encoded in batches of whole clips.

    Modules behind the feature layer (later blocks, pooling) are never built. A subclass adds
    positions in `start` and may cut or normalise in `finish`.

    Args:
        config: sizes and the block whose output is the feature.
        patch_embed: pixels (frames, 3, S, S) -> (frames, patches, hidden_size).
        blocks: as many as `config.num_blocks`.
    """

    def __init__(
        self,
        config: VisionConfig,
        patch_embed: PatchEmbed | TubePatchEmbed | LinearPatchEmbed,
        blocks: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self._compiled_frames: int | None = None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of such a frame."""
        return height // self.config.patch_size, width // self.config.patch_size

    def embed(self, pixels: Tensor, clip: int) -> Tensor:
        """Patches of clips of `clip` frames, embedded: (clips, frames * patches, hidden_size)."""
        x = self.patch_embed(pixels)
        return x.reshape(len(x) // clip, clip * x.shape[1], x.shape[2])

    def start(self, x: Tensor, frames: int) -> Tensor:
        """The blocks' input from embedded patches (clips, frames * patches, hidden_size)."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """Features (clips, frames * patches, hidden_size) from the last block's output."""
        return x

    def split(self, x: Tensor, clip: int) -> Tensor:
        """What is returned, (frames, patches, hidden_size), from features of clips."""
        return x.reshape(len(x) * clip, x.shape[1] // clip, x.shape[2])

    def forward(self, pixels: Tensor, images: bool = False) -> Tensor:
        """Features of normalised pixels (frames, 3, image_size, image_size), in the model's dtype.

        Args:
            pixels: frames of a video, in whole clips; or images.
            images: encode each frame alone.

        Raises:
            ValueError: the pixels have another shape, are no floats, or do not fill whole clips.
        """
        clip = self._checked(pixels, images)
        x = self.start(self.embed(pixels.to(self.patch_embed.proj.weight.dtype), clip), clip)
        runs_compiled = self._compiled_frames in (None, len(pixels))
        for block in self.blocks:
            # `forward` is the block as it was built, a call the compiled one
            x = block(x) if runs_compiled else block.forward(x)
        return self.split(self.finish(x), clip)

    def compile_blocks(self, frames: int, backend: str | Callable[..., Any]) -> None:
        """Compile the blocks for batches of exactly `frames` frames; others run as before."""
        self._compiled_frames = frames
        for block in self.blocks:
            block.compile(dynamic=False, backend=backend)

    def set_image_size(self, size: int) -> None:
        """Take pictures of another size: position parameters are interpolated (bicubic).

        At the size that it has, the encoder keeps its parameters, and an optimizer its state.

        Raises:
            ValueError: a size that the config does not allow.
        """
        before = self.config.patches_per_side
        self.config = replace(self.config, image_size=size)
        if self.config.patches_per_side != before:
            with torch.no_grad():
                self.resize(before, self.config.patches_per_side)

    def resize(self, before: int, after: int) -> None:
        """Fit position parameters to `after` patches per side; computed positions need nothing."""

    @property
    def sizes(self) -> str:
        """The shapes of pixels that `takes` allows, as an error names them."""
        size = self.config.image_size
        return f"(frames, 3, {size}, {size})"

    def takes(self, height: int, width: int) -> bool:
        """Whether frames of this size can be encoded."""
        return height == width == self.config.image_size

    def _checked(self, pixels: Tensor, images: bool) -> int:
        """Frames per clip of these pixels."""
        owner = type(self).__name__
        if not (isinstance(pixels, Tensor) and pixels.is_floating_point()):
            rule = "be a tensor of floats (preprocess.resize_normalize makes them of uint8 frames)"
            kind = pixels.dtype if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ArgumentError(owner, "pixels", rule, kind)
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not self.takes(*pixels.shape[2:]):
            rule = f"be {self.sizes}"
            raise ArgumentError(owner, "pixels", rule, f"shape {tuple(pixels.shape)}")
        clip = 1 if images else self.config.clip_frames
        if len(pixels) % clip:
            rule = f"come in whole clips of {clip} frames"
            remedy = "repeat the last frame, or pass images=True for images"
            raise ArgumentError(owner, "pixels", rule, f"{len(pixels)} frames", remedy)
        return clip


def resize_grid(positions: Tensor, before: int, after: int, antialias: bool = False) -> Tensor:
    """Resize each frame's square of positions by bicubic interpolation, in float32.

    Args:
        positions: (1, frames * before * before, channels), time first, then rows, then columns.
        before, after: positions per side.
        antialias: as `torch.nn.functional.interpolate`.

    Returns:
        (1, frames * after * after, channels) of the same dtype.
    """
    if before == after:
        return positions
    grid = rearrange(positions, "one (t h w) c -> (one t) c h w", h=before, w=before).float()
    grid = F.interpolate(grid, size=(after, after), mode="bicubic", antialias=antialias)
    return rearrange(grid, "t c h w -> 1 (t h w) c").to(positions.dtype)
