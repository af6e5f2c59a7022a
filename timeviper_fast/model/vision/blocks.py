"""The parts that the vision transformers share: patches, attention, layer scale, MLP, block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from timeviper_fast.config import VisionConfig

__all__ = ["Attention", "Block", "LayerScale", "LinearPatchEmbed", "PatchEmbed", "TubePatchEmbed"]


class PatchEmbed(nn.Module):
    """One linear map per patch; pixels right of and below the last whole patch are ignored."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(3, config.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return rearrange(self.proj(pixels), "t c h w -> t (h w) c")


class TubePatchEmbed(nn.Module):
    """`PatchEmbed` with the weight of a 3-D convolution over one frame, as video encoders store it.

    The convolution runs in two dimensions, so the frames need not be gathered into clips.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        tube = (1, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.hidden_size, kernel_size=tube, stride=tube)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = self.proj.weight[:, :, 0]
        y = F.conv2d(pixels, weight, self.proj.bias, stride=self.proj.stride[1:])
        return rearrange(y, "t c h w -> t (h w) c")


class LinearPatchEmbed(nn.Module):
    """One linear map without bias per patch of `clip` frames; a patch's inputs are ordered by
    frame, channel, row and column."""

    def __init__(self, config: VisionConfig, clip: int) -> None:
        super().__init__()
        self.patch, self.clip = config.patch_size, clip
        self.proj = nn.Linear(clip * 3 * self.patch**2, config.hidden_size, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(frames, 3, h, w) -> (frames / clip, patches, hidden_size)."""
        order = "(n t) c (h y) (w x) -> n (h w) (t c y x)"
        return self.proj(rearrange(pixels, order, t=self.clip, y=self.patch, x=self.patch))


class Block(nn.Module):
    """Pre-norm transformer block; `gradient_checkpointing` as in the LLM's layers.

    x += ls1(attn(norm1(x))), x += ls2(mlp(norm2(x)))

    Args:
        config: sizes, activation and the norms' epsilon.
        attention: the block's attention; by default `Attention`.
        norms: `norm1` and `norm2`; by default LayerNorm.
        scaled: whether there are layer scales `ls1` and `ls2`.
    """

    def __init__(
        self,
        config: VisionConfig,
        attention: nn.Module | None = None,
        norms: tuple[nn.Module, nn.Module] | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.gradient_checkpointing = False
        first, second = norms or (nn.LayerNorm(size, eps=eps), nn.LayerNorm(size, eps=eps))
        self.norm1 = first
        self.attn = attention or Attention(config)
        self.ls1 = LayerScale(size) if scaled else nn.Identity()
        self.norm2 = second
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(size) if scaled else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._block, x, use_reentrant=False)
        return self._block(x)

    def _block(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Every token of a frame or clip attends to every token of the same frame or clip."""

    def __init__(self, config: VisionConfig, qkv_bias: bool = True) -> None:
        super().__init__()
        self.nheads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, each (clips, tokens, hidden_size)."""
        return self.qkv(x).chunk(3, dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (rearrange(y, "t p (h d) -> t h p d", h=self.nheads) for y in self.project(x))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(y, "t h p d -> t p (h d)"))


class LayerScale(nn.Module):
    """x * weight per channel; the product is computed in float32 and cast back."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float() * self.weight.float()).to(x.dtype)


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), gelu exact (erf) or in its tanh form as the config says."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.approximate = "none" if config.hidden_act == "gelu" else "tanh"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
