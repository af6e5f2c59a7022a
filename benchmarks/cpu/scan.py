"""The Mamba-2 scan: `mamba_chunk_scan_combined` against transformers' torch path, in float32.

No global flag is set, so that denormal numbers cost both what they cost a user.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_chunk_scan

from benchmarks.cpu.measure import Comparison, relative, still
from tvkernels.ssd import mamba_chunk_scan_combined

DIMENSIONS = ("nheads", "headdim", "ngroups", "d_state", "seqlen")
# a small hybrid at three lengths, Nemotron-Nano-9B-v2
ROWS = (
    (16, 64, 4, 64, 1024), (16, 64, 4, 64, 4096), (16, 64, 4, 64, 8192), (128, 80, 8, 128, 2048),
)  # fmt: skip
# NemotronHConfig's default, with which transformers' models call it
CHUNK_SIZE = 128
FACTS = {"dtype": "float32", "chunk_size": CHUNK_SIZE}
SCANS = {"ours": mamba_chunk_scan_combined, "transformers": mamba2_chunk_scan}


def row(*shape: int, small: bool) -> Comparison:
    """Forward, backward after an untimed forward, and the memory of both."""
    shape = (*shape[:4], 16) if small else shape
    tensors = inputs(*shape)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]

    def forward(form: str, given: list[Any] = tensors) -> tuple[torch.Tensor, ...]:
        """(out, final state)."""
        x, dt, A, B, C, D = given
        return SCANS[form](x, dt, A, B, C, CHUNK_SIZE, D=D, return_final_states=True)

    def behind(form: str) -> AbstractContextManager[Any]:
        return nullcontext(partial(backward, forward(form, leaves)))

    def training(form: str) -> None:
        backward(forward(form, leaves))

    output_mb = round(tensors[0].nbytes / 2**20, 1)
    facts = {"shape": dict(zip(DIMENSIONS, shape)), "output_mb": output_mb}
    times = {"forward": still(forward), "backward": behind}
    memory = {"forward": still(forward), "training": still(training)}
    return Comparison(tuple(SCANS), facts, times, memory, relative)


def inputs(nheads: int, headdim: int, ngroups: int, d_state: int, seqlen: int) -> list[Any]:
    """Steps log-uniform in [1e-3, 0.1] and A uniform in [-16, -1], as Mamba-2 starts training."""
    generator = torch.Generator().manual_seed(0)
    randn = partial(torch.randn, generator=generator)
    steps = torch.rand(1, seqlen, nheads, generator=generator)
    x, dt = randn(1, seqlen, nheads, headdim), torch.exp(math.log(1e-3) + steps * math.log(100))
    A = -1 - 15 * torch.rand(nheads, generator=generator)
    B, C = (randn(1, seqlen, ngroups, d_state) for _ in "BC")
    return [x, dt, A, B, C, randn(nheads)]


def backward(made: Any) -> None:
    """Gradients of every input; each result's own values are its cotangent."""
    torch.autograd.backward(made, [tensor.detach() for tensor in made])
