"""Frames to patch features: a vision transformer that stops at the feature layer.

The encoders are SigLIP's; parameter names are timm's. Modules behind the feature layer (later
blocks, final norm, pooling) are never built, and the features are not normalised.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from timeviper_fast.config import VisionConfig
from timeviper_fast.errors import ArgumentError

__all__ = ["VisionTransformer"]


class VisionTransformer(nn.Module):
    """Pixels (frames, 3, S, S) -> features (frames, patches, hidden_size) of `feature_layer`.

    x = conv_p(pixels) + pos_embed;  per block: x += attn(norm1(x)), x += mlp(norm2(x))

    Args:
        config: sizes, activation and the block whose output is the feature.

    Source: SigLIP (arXiv 2303.15343), timm's VisionTransformer; upstream TimeViper takes the
        second-to-last block.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.empty(1, config.patches_per_frame, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        nn.init.normal_(self.pos_embed, std=config.hidden_size**-0.5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features of normalised pixels (frames, 3, image_size, image_size), in the model's dtype.

        Frames do not attend to each other, so a video may be encoded in batches of any size.

        Raises:
            ValueError: the pixels have another shape, or are no floats.
        """
        size = self.config.image_size
        if not (isinstance(pixels, torch.Tensor) and pixels.is_floating_point()):
            rule = "be a tensor of floats (preprocess.resize_normalize makes them of uint8 frames)"
            kind = pixels.dtype if isinstance(pixels, torch.Tensor) else type(pixels).__name__
            raise ArgumentError("VisionTransformer", "pixels", rule, kind)
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ArgumentError(
                "VisionTransformer",
                "pixels",
                f"be (frames, 3, {size}, {size})",
                f"shape {tuple(pixels.shape)}",
            )
        x = self.patch_embed(pixels.to(self.pos_embed.dtype)) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x

    @torch.no_grad()
    def set_image_size(self, size: int) -> None:
        """Take pictures of another size: position embeddings are interpolated (bicubic).

        Raises:
            ValueError: a size that the config does not allow.
        """
        config = replace(self.config, image_size=size)
        before, after = (c.image_size // c.patch_size for c in (self.config, config))
        if before != after:
            grid = rearrange(self.pos_embed, "one (h w) c -> one c h w", h=before).float()
            grid = F.interpolate(grid, size=(after, after), mode="bicubic", antialias=True)
            grid = rearrange(grid, "one c h w -> one (h w) c").to(self.pos_embed.dtype)
            self.pos_embed = nn.Parameter(grid, requires_grad=self.pos_embed.requires_grad)
        self.config = config


class PatchEmbed(nn.Module):
    """One linear map per patch; pixels right of and below the last whole patch are ignored."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(3, config.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return rearrange(self.proj(pixels), "t c h w -> t (h w) c")


class Block(nn.Module):
    """Pre-norm transformer block; `gradient_checkpointing` as in the LLM's layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._block, x, use_reentrant=False)
        return self._block(x)

    def _block(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Every patch of a frame attends to every patch of the same frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.nheads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = rearrange(self.qkv(x), "t p (three h d) -> three t h p d", three=3, h=self.nheads)
        y = F.scaled_dot_product_attention(*qkv)
        return self.proj(rearrange(y, "t h p d -> t p (h d)"))


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), gelu exact (erf) or in its tanh form as the config says."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.approximate = "none" if config.hidden_act == "gelu" else "tanh"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
