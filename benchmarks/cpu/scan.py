"""The Mamba-2 scan: `mamba_chunk_scan_combined` against transformers' torch path, in float32.

No global flag is set, so that denormal numbers cost both what they cost a user.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_chunk_scan

from benchmarks.cpu.measure import extra_peak_mb, medians, peak_elsewhere, relative
from tvkernels.ssd import mamba_chunk_scan_combined

Tensors = dict[str, torch.Tensor]

DIMENSIONS = ("nheads", "headdim", "ngroups", "d_state", "seqlen")
# a small hybrid at three lengths, Nemotron-Nano-9B-v2
SHAPES = (
    (16, 64, 4, 64, 1024), (16, 64, 4, 64, 4096), (16, 64, 4, 64, 8192), (128, 80, 8, 128, 2048),
)  # fmt: skip
# NemotronHConfig's default, with which transformers' models call it
CHUNK_SIZE = 128
FACTS = {"dtype": "float32", "chunk_size": CHUNK_SIZE}
SCANS: dict[str, Callable[..., Any]] = {
    "ours": mamba_chunk_scan_combined,
    "transformers": mamba2_chunk_scan,
}


def rows(repeats: int, threads: int, small: bool) -> Iterator[dict[str, Any]]:
    for index in range(1 if small else len(SHAPES)):
        yield measure(index, repeats, threads)


def measure(index: int, repeats: int, threads: int) -> dict[str, Any]:
    """Times, memory and largest difference of both scans at one shape."""
    tensors = inputs(*SHAPES[index])
    with torch.no_grad():
        (out, state), (out_, state_) = (forward(scan, tensors) for scan in SCANS.values())
        difference = max(relative(out, out_), relative(state, state_))
        calls = {name: lambda _, scan=scan: forward(scan, tensors) for name, scan in SCANS.items()}
        forward_ms = medians(calls, repeats)
    leaves = {k: v.clone().requires_grad_() for k, v in tensors.items()}
    behind = {
        name: lambda scan=scan: nullcontext(forward(scan, leaves)) for name, scan in SCANS.items()
    }
    backward_ms = medians(dict.fromkeys(SCANS, backward), repeats, behind)

    def peaks(kind: str) -> dict[str, float | None]:
        return {scan: peak_elsewhere("scan", threads, scan, str(index), kind) for scan in SCANS}

    return {
        "shape": dict(zip(DIMENSIONS, SHAPES[index])),
        "forward_ms": forward_ms,
        "backward_ms": backward_ms,
        "forward_extra_mb": peaks("forward"),
        "training_extra_mb": peaks("training"),
        "output_mb": round(tensors["x"].nbytes / 2**20, 1),
        "relative_difference": difference,
    }


def inputs(nheads: int, headdim: int, ngroups: int, d_state: int, seqlen: int) -> Tensors:
    """Steps log-uniform in [1e-3, 0.1] and A uniform in [-16, -1], as Mamba-2 starts training."""
    generator = torch.Generator().manual_seed(0)
    randn = partial(torch.randn, generator=generator)
    steps = torch.rand(1, seqlen, nheads, generator=generator)
    return {
        "x": randn(1, seqlen, nheads, headdim),
        "dt": torch.exp(math.log(1e-3) + steps * math.log(100)),
        "A": -1 - 15 * torch.rand(nheads, generator=generator),
        "B": randn(1, seqlen, ngroups, d_state),
        "C": randn(1, seqlen, ngroups, d_state),
        "D": randn(nheads),
    }


def forward(scan: Callable[..., Any], tensors: Tensors) -> Any:
    """(out, final state)."""
    x, dt, A, B, C, D = tensors.values()
    return scan(x, dt, A, B, C, CHUNK_SIZE, D=D, return_final_states=True)


def backward(made: Any) -> None:
    """Gradients of every input for random-like cotangents on both results."""
    torch.autograd.backward(made, [tensor.detach() for tensor in made])


def peak(name: str, index: str, kind: str) -> float | None:
    """Megabytes that one call needs beyond its inputs, in this process."""
    scan, shape = SCANS[name], SHAPES[int(index)]
    # the libraries' own set-up happens in a short call first
    small, tensors = inputs(*shape[:4], 16), inputs(*shape)
    if kind == "forward":
        with torch.no_grad():
            forward(scan, small)
            return extra_peak_mb(lambda: forward(scan, tensors))
    for leaf in (*small.values(), *tensors.values()):
        leaf.requires_grad_()
    backward(forward(scan, small))
    return extra_peak_mb(lambda: backward(forward(scan, tensors)))
