"""The causal convolution and the norms against the plain PyTorch path of transformers.

Forward, and forward with backward, with the strides that a Mamba-2 layer passes (slices of one
projection).
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.nemotron_h import modeling_nemotron_h as theirs

from benchmarks.cpu.measure import Comparison, largest, still
from tvkernels import causal_conv1d_fn, rms_norm, rmsnorm_fn

# (seqlen, d_inner, convolution channels, groups): a small layer, and Nemotron-Nano-9B-v2's
SHAPES = ((4096, 1024, 1536, 4), (2048, 10240, 12288, 8))
DTYPES = (torch.float32, torch.bfloat16)
OPS = ("causal_conv1d_fn", "rmsnorm_fn", "rms_norm")
ROWS = tuple(product(SHAPES, DTYPES, OPS))
FACTS: dict[str, Any] = {}


def row(shape: tuple[int, ...], dtype: torch.dtype, op: str, small: bool) -> Comparison:
    cotangent, forms = ops((64, 128, 160, 4) if small else shape, dtype)[op]

    @torch.no_grad()
    def forward(form: str) -> torch.Tensor:
        return forms[form]()

    def training(form: str) -> None:
        forms[form]().backward(cotangent)

    facts = {"op": op, "shape": list(cotangent.shape), "dtype": str(dtype).removeprefix("torch.")}
    passes = {"forward": still(forward), "training": still(training)}
    return Comparison(("ours", "torch"), facts, passes, passes, largest)


def ops(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Per op a gradient of its result, and its two forms on the same inputs."""
    torch.manual_seed(0)
    seqlen, d_inner, channels, groups = shape
    z, xbc = torch.randn(1, seqlen, d_inner + channels, dtype=dtype).split([d_inner, channels], -1)
    xbc, y = xbc.mT.requires_grad_(), torch.randn(1, seqlen, d_inner, dtype=dtype)
    y.requires_grad_()
    conv = torch.nn.Conv1d(channels, channels, 4, groups=channels, padding=3, dtype=dtype)
    size = d_inner // groups
    gated = theirs.NemotronHRMSNormGated(d_inner, size, eps=1e-5).to(dtype)
    plain = theirs.NemotronHRMSNorm(d_inner, eps=1e-5).to(dtype)
    taps = conv.weight.squeeze(1)
    dy, dxbc = torch.randn_like(y), torch.randn(1, seqlen, channels, dtype=dtype).mT
    convolution = {
        "ours": lambda: causal_conv1d_fn(xbc, taps, conv.bias, activation="silu"),
        "torch": lambda: F.silu(conv(xbc)[..., :seqlen]),
    }
    gated_norm = {
        "ours": lambda: rmsnorm_fn(y, gated.weight, None, z, 1e-5, size, False),
        "torch": lambda: gated(y, z),
    }
    norm = {"ours": lambda: rms_norm(y, plain.weight, 1e-5), "torch": lambda: plain(y)}
    return dict(zip(OPS, ((dxbc, convolution), (dy, gated_norm), (dy, norm))))
