"""What ours is measured against: other libraries' kernels, other formulations written plainly."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

import tvkernels

__all__ = ["mamba_ssm", "tome_per_round", "without_cuda"]


def mamba_ssm() -> SimpleNamespace | None:
    """mamba-ssm's Triton functions under our names, or None where it is not installed.

    Its pure Python install asks for a compiled module when it is imported, which none of these
    functions use: an empty one stands in for it.
    """
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    if importlib.util.find_spec("selective_scan_cuda") is None:
        sys.modules["selective_scan_cuda"] = ModuleType("selective_scan_cuda")
    rooms = {
        name: importlib.import_module(f"mamba_ssm.ops.triton.{name}")
        for name in ("layer_norm", "layernorm_gated", "selective_state_update")
    }

    def rms_norm(x: Any, weight: Any, eps: float, residual: Any) -> Any:
        options = {"residual": residual, "prenorm": True, "eps": eps}
        return rooms["layer_norm"].rms_norm_fn(x, weight, None, **options)

    update = rooms["selective_state_update"].selective_state_update
    return SimpleNamespace(
        rmsnorm_fn=rooms["layernorm_gated"].rmsnorm_fn,
        rms_norm=rms_norm,
        selective_state_update=update,
        mamba2_decode_step=functools.partial(_mixer_step, update),
    )


def _mixer_step(
    update: Any, zxbcdt: Any, conv_state: Any, ssm_state: Any, cache_seqlens: Any,
    weight: Any, bias: Any, dt_bias: Any, A_log: Any, D: Any,
) -> Any:  # fmt: skip
    """What mamba-ssm's Mamba2.step does: two kernels, and A anew for every token.

    Its convolution is causal-conv1d's, which is not in Triton; ours stands in for it.
    """
    heads, headdim, d_state = ssm_state.shape[1:]
    dim, channels = heads * headdim, len(weight)
    z, xbc, dt = zxbcdt.split([dim, channels, heads], dim=-1)
    xbc = tvkernels.causal_conv1d_update(xbc, conv_state, weight, bias, "silu", cache_seqlens)
    x, B, C = xbc.split([dim, *[(channels - dim) // 2] * 2], dim=-1)

    def per_channel(t: Any) -> Any:
        return t[..., None].expand(*t.shape, headdim)

    y = update(
        ssm_state, x.unflatten(-1, (heads, -1)), per_channel(dt),
        -torch.exp(A_log.float())[:, None, None].expand(heads, headdim, d_state),
        B.unflatten(-1, (-1, d_state)), C.unflatten(-1, (-1, d_state)),
        D=per_channel(D), z=z.unflatten(-1, (heads, -1)), dt_bias=per_channel(dt_bias),
        dt_softplus=True,
    )  # fmt: skip
    return y.flatten(1)


@contextlib.contextmanager
def without_cuda(multiprocessors: int = 132) -> Iterator[None]:
    """Let launchers that ask PyTorch for their CUDA device run on CPU tensors: 132 is an H200's."""
    device = SimpleNamespace(multi_processor_count=multiprocessors)
    here = contextlib.nullcontext()
    with (
        mock.patch.object(torch.cuda, "device", return_value=here),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=device),
    ):
        yield


def tome_per_round(x: torch.Tensor, num_tokens: int, num_heads: int = 16) -> torch.Tensor:
    """Token merging as upstream TimeViper states it: every round rewrites the full-width tokens.

    Each round averages the heads anew, sorts the even tokens by their best match, gathers the kept
    and the merged ones, adds the merged into their partners, and joins the two parts.
    """
    size = torch.ones_like(x[..., :1])
    while (count := x.shape[1]) > num_tokens:
        merged = min(count - num_tokens, count // 2)
        metric = x.unflatten(-1, (num_heads, -1)).mean(2)
        metric = metric / metric.norm(dim=-1, keepdim=True)
        best, partner = (metric[:, 0::2] @ metric[:, 1::2].mT).max(-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        leaving, staying = order[:, :merged], order[:, merged:]
        target = partner[..., None].gather(1, leaving)
        total = _merge(x * size, leaving, staying, target)
        size = _merge(size, leaving, staying, target)
        x = total / size
    return x


def _merge(
    x: torch.Tensor, leaving: torch.Tensor, staying: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    even, odd, width = x[:, 0::2], x[:, 1::2], x.shape[-1]
    kept = even.gather(1, staying.expand(-1, -1, width))
    moved = even.gather(1, leaving.expand(-1, -1, width))
    return torch.cat([kept, odd.scatter_add(1, target.expand(-1, -1, width), moved)], dim=1)
