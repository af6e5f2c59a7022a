"""Patch features to visual tokens: merge similar patches (ToMe), then map them into the LLM.

Merging happens in the vision encoder's feature space, before any learned weight.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from timeviper_fast.config import ProjectorConfig
from timeviper_fast.errors import ArgumentError
from tvkernels import tome_merge

__all__ = ["Projector"]


class Projector(nn.Module):
    """Features (frames, patches, vision_size) -> tokens (frames, n, hidden_size).

    tokens = mlp(tome(features)); n is `num_tokens`, for images `image_tokens`, or every patch for
    "gelu_mlp".

    Args:
        config: which projector, and how it merges.
        vision_size: channels of the features.
        hidden_size: channels of the LLM.

    Source: TimeViper (arXiv 2511.16595), ToMe (arXiv 2210.09461).
    """

    def __init__(self, config: ProjectorConfig, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.vision_size = vision_size
        inner = [4 * vision_size] if config.kind == "fused_tome_mlp" else []
        widths = [vision_size, *inner, hidden_size, hidden_size]
        linears = [nn.Linear(width_in, out) for width_in, out in pairwise(widths)]
        rest = [module for linear in linears[1:] for module in (nn.GELU(), linear)]
        self.layers = nn.Sequential(linears[0], *rest)

    def merge(self, features: torch.Tensor, images: bool = False) -> torch.Tensor:
        """Merge similar patches into their mean: (frames, patches, vision_size) -> (frames, n, .).

        With `clip_frames` above 1 that many frames are merged as one set of patches. The result is
        reshaped to n tokens per frame, but a token may hold patches of any frame of its clip. With
        `images=True` each frame is an image and is merged alone.

        Raises:
            ValueError: features of another shape, fewer patches than `num_tokens`, or frames that
                do not fill whole clips.
        """
        config, vision_size = self.config, self.vision_size
        if features.ndim != 3 or features.shape[-1] != vision_size:
            raise ArgumentError(
                "Projector",
                "features",
                f"be (frames, patches, {vision_size})",
                f"shape {tuple(features.shape)}",
            )
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
        """The MLP alone: tokens (..., vision_size) -> (..., hidden_size)."""
        return self.layers(tokens)

    def forward(self, features: torch.Tensor, images: bool = False) -> torch.Tensor:
        """merge, then project."""
        return self.project(self.merge(features, images))
