"""The whole matrices of attention and Mamba-2 in float64, and small random layers."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.tiny import TINY
from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.nemotron_h import HybridBackbone

STAGES = (CompressionStage(3, "uniform", 0.6), CompressionStage(8, "attention", 0.3))
QWEN2 = BackboneConfig(
    vocab_size=31,
    hidden_size=32,
    intermediate_size=24,
    pattern="*-*-*-",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    attention_bias=True,
    family="qwen2",
    rope_theta=100.0,
)


def backbone(config=TINY, stages=(), seed=4) -> HybridBackbone:
    model = HybridBackbone(config, stages)
    init_weights(model, seed=seed)
    for module in model.transv:
        if module.stage.transfer:
            torch.nn.init.constant_(module.alpha, 0.8)
    return model.double().eval()


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def turned(x: Tensor, theta: float, start: int = 0) -> Tensor:
    """x (n, heads, d) at rotary positions start, start + 1, ..., as a product of complex numbers."""
    half = x.shape[-1] // 2
    rates = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(start, start + len(x), dtype=torch.float64)[:, None] * rates
    spun = (
        torch.complex(x[..., :half], x[..., half:])
        * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    return torch.cat([spun.real, spun.imag], -1)


def attention_matrix(q: Tensor, k: Tensor) -> Tensor:
    """(nheads, n, m), the last n rows of the softmax, written as exp over its sum."""
    n, heads, width = q.shape
    keys = k.repeat_interleave(heads // k.shape[1], 1).double()
    weights = torch.einsum("nhd,mhd->hnm", q.double(), keys).div(width**0.5).exp()
    weights = weights.tril(len(k) - n)
    return weights / weights.sum(-1, keepdim=True)


def mamba_matrix(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, with_dt: bool = True) -> Tensor:
    """(nheads, n, n) M, each decay multiplied up step by step along its column."""
    n, heads = dt.shape
    dt, A, B, C = (x.double() for x in (dt, A, B, C))
    share = heads // B.shape[1]
    products = torch.einsum("igs,jgs->gij", C, B).repeat_interleave(share, 0)
    steps = (dt * A).exp().T
    decay = torch.zeros(heads, n, n, dtype=torch.float64)
    for j in range(n):
        decay[:, j, j] = 1
        for i in range(j + 1, n):
            decay[:, i, j] = decay[:, i - 1, j] * steps[:, i]
    return products * decay * (dt.T[:, None] if with_dt else 1.0)
