"""Patch features to visual tokens: merge similar patches (ToMe) or join neighbouring ones, then
map them into the LLM.

Merging happens in the vision encoder's feature space, before any learned weight.
"""

from __future__ import annotations

from itertools import pairwise
from math import isqrt

import torch
from einops import rearrange
from torch import nn

from timeviper_fast.config import ProjectorConfig
from timeviper_fast.errors import ArgumentError
from tvkernels import relu2, rms_norm, tome_merge

__all__ = ["Projector"]


class Projector(nn.Module):
    """Features (frames, patches, vision_size) -> tokens (frames, n, hidden_size).

    tokens = mlp(tome(features)); n is `num_tokens`, for images `image_tokens`, or every patch for
    "gelu_mlp". For "pixel_shuffle_mlp": tokens = W2 relu(W1 rmsnorm(shuffle(features)))^2, and n is
    a quarter of the patches.

    Args:
        config: which projector, and how it merges.
        vision_size: channels of the features.
        hidden_size: channels of the LLM.

    Source: TimeViper (arXiv 2511.16595), ToMe (arXiv 2210.09461), Nemotron Nano V2 VL
        (arXiv 2511.03929).
    """

    def __init__(self, config: ProjectorConfig, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.vision_size = vision_size
        if config.shuffles:
            self.layers = _shuffled_mlp(config, vision_size, hidden_size)
            return
        inner = [4 * vision_size] if config.kind == "fused_tome_mlp" else []
        widths = [vision_size, *inner, hidden_size, hidden_size]
        linears = [nn.Linear(width_in, out) for width_in, out in pairwise(widths)]
        rest = [module for linear in linears[1:] for module in (nn.GELU(), linear)]
        self.layers = nn.Sequential(linears[0], *rest)

    def merge(
        self, features: torch.Tensor, images: bool = False, grid: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Merge similar patches into their mean: (frames, patches, vision_size) -> (frames, n, .).

        "pixel_shuffle_mlp" joins 2 x 2 patches of `grid` instead, which is (rows, columns) of the
        patches and None for a square; its tokens have 4 * vision_size channels. The other kinds do
        not read `grid`.

        With `clip_frames` above 1 that many frames are merged as one set of patches. The result is
        reshaped to n tokens per frame, but a token may hold patches of any frame of its clip. With
        `images=True` each frame is an image and is merged alone.

        Raises:
            ValueError: features of another shape, fewer patches than `num_tokens`, frames that do
                not fill whole clips, or a grid that does not have even sides.
        """
        config, vision_size = self.config, self.vision_size
        if features.ndim != 3 or features.shape[-1] != vision_size:
            raise ArgumentError(
                "Projector",
                "features",
                f"be (frames, patches, {vision_size})",
                f"shape {tuple(features.shape)}",
            )
        if config.shuffles:
            return _shuffled(features, grid)
        if not config.merges:
            return features
        frames, patches, _ = features.shape
        clip = 1 if images else config.clip_frames
        tokens = config.tokens_of_image if images else clip * config.num_tokens
        if frames % clip:
            raise ArgumentError(
                "Projector",
                "frames",
                f"come in whole clips of {clip} (they are merged together)",
                frames,
                "repeat the last frame or drop the rest; images=True merges images",
            )
        clips = features.reshape(frames // clip, clip * patches, vision_size)
        merged = tome_merge(
            clips,
            tokens,
            num_heads=config.merge_heads,
            order=config.token_order,
        )
        return merged.tokens.reshape(frames, tokens // clip, vision_size)

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """The MLP alone: merged tokens (..., channels) -> (..., hidden_size)."""
        return self.layers(tokens)

    def forward(
        self, features: torch.Tensor, images: bool = False, grid: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """merge, then project."""
        return self.project(self.merge(features, images, grid))


class _RMSNorm(nn.Module):
    """Normalised and scaled in float32, then cast back."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, 1e-5)


class _SquaredReLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return relu2(x)


def _shuffled_mlp(config: ProjectorConfig, vision_size: int, hidden_size: int) -> nn.Sequential:
    size = config.patches_per_token * vision_size
    return nn.Sequential(
        _RMSNorm(size),
        nn.Linear(size, config.inner_size, bias=False),
        _SquaredReLU(),
        nn.Linear(config.inner_size, hidden_size, bias=False),
    )


def _shuffled(features: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
    """(frames, patches, C) -> (frames, patches / 4, 4C); channel block k of token (i, j) is patch
    (2i + k // 2, 2j + k % 2)."""
    patches = features.shape[1]
    rows, columns = grid or (isqrt(patches),) * 2
    if rows * columns != patches or rows % 2 or columns % 2:
        rule = f"be even rows and columns of the {patches} patches"
        raise ArgumentError("Projector", "grid", rule, f"{rows} x {columns}")
    order = "t (i y j x) c -> t (i j) (y x c)"
    return rearrange(features, order, i=rows // 2, y=2, x=2, j=columns // 2)
