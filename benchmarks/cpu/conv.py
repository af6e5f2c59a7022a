"""The causal convolution and the norms against the plain PyTorch path of transformers.

Forward, and forward with backward, with the strides that a Mamba-2 layer passes (slices of one
projection).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.nemotron_h.modeling_nemotron_h import (
    NemotronHRMSNorm,
    NemotronHRMSNormGated,
)

from benchmarks.cpu.measure import extra_peak_mb, medians
from tvkernels import causal_conv1d_fn, rms_norm, rmsnorm_fn

# (seqlen, d_inner, convolution channels, groups): a small layer, and Nemotron-Nano-9B-v2's
SHAPES = ((4096, 1024, 1536, 4), (2048, 10240, 12288, 8))
DTYPES = (torch.float32, torch.bfloat16)
FACTS: dict[str, Any] = {}
Forms = dict[str, Callable[[], torch.Tensor]]


def rows(repeats: int, threads: int, small: bool) -> Iterator[dict[str, Any]]:
    for shape in ((64, 128, 160, 4),) if small else SHAPES:
        for dtype in DTYPES:
            for name, (size, forms) in ops(*shape, dtype).items():
                row = {"op": name, "shape": size, "dtype": str(dtype).removeprefix("torch.")}
                yield {**row, **measure(forms, repeats)}


def ops(
    seqlen: int, d_inner: int, channels: int, groups: int, dtype: torch.dtype
) -> dict[str, tuple[list[int], Forms]]:
    """Per op its shape and its two forms, on the same inputs."""
    torch.manual_seed(0)
    z, xbc = torch.randn(1, seqlen, d_inner + channels, dtype=dtype).split([d_inner, channels], -1)
    xbc, y = xbc.mT.requires_grad_(), torch.randn(1, seqlen, d_inner, dtype=dtype)
    y.requires_grad_()
    conv = torch.nn.Conv1d(channels, channels, 4, groups=channels, padding=3, dtype=dtype)
    size = d_inner // groups
    gated = NemotronHRMSNormGated(d_inner, size, eps=1e-5).to(dtype)
    plain = NemotronHRMSNorm(d_inner, eps=1e-5).to(dtype)
    taps = conv.weight.squeeze(1)
    convolution: Forms = {
        "ours": lambda: causal_conv1d_fn(xbc, taps, conv.bias, activation="silu"),
        "torch": lambda: F.silu(conv(xbc)[..., :seqlen]),
    }
    gated_norm: Forms = {
        "ours": lambda: rmsnorm_fn(y, gated.weight, None, z, 1e-5, size, False),
        "torch": lambda: gated(y, z),
    }
    norm: Forms = {"ours": lambda: rms_norm(y, plain.weight, 1e-5), "torch": lambda: plain(y)}
    return {
        "causal_conv1d_fn": ([1, channels, seqlen], convolution),
        "rmsnorm_fn": ([1, seqlen, d_inner], gated_norm),
        "rms_norm": ([1, seqlen, d_inner], norm),
    }


def measure(forms: Forms, repeats: int) -> dict[str, Any]:
    """Median milliseconds and extra megabytes of both passes, largest difference."""
    cotangent = torch.randn_like(forms["ours"]())

    def forward(form: Callable[[], torch.Tensor], _: Any = None) -> torch.Tensor:
        with torch.no_grad():
            return form()

    def both(form: Callable[[], torch.Tensor], _: Any = None) -> None:
        form().backward(cotangent)

    out: dict[str, Any] = {}
    for name, run in (("forward", forward), ("forward_backward", both)):
        ms = medians({key: partial(run, form) for key, form in forms.items()}, repeats)
        memory = {key: extra_peak_mb(partial(run, form)) for key, form in forms.items()}
        ratio = round(ms["torch"] / ms["ours"], 2)
        out[name] = {"ms": ms, "ratio": ratio, "extra_peak_mb": memory}
    difference = forward(forms["ours"]).float() - forward(forms["torch"]).float()
    return {**out, "largest_difference": float(difference.abs().max())}
