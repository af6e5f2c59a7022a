"""Token merging: `tome_merge` against upstream's formulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.cpu.measure import extra_peak_mb, medians, peak_elsewhere
from benchmarks.timing.peers import tome_per_round
from tvkernels.tome import tome_merge

# (batch, seqlen, dim, num_tokens): SigLIP so400m at 384 px and at 224 px, CLIP L/14 at 336 px, ViT
# B/16 at 224 px; then clips of four frames: of 256 tokens (few and many) and of SigLIP's 729
SHAPES = (
    (16, 729, 1152, 16), (16, 256, 1152, 16), (16, 576, 1024, 16), (16, 196, 768, 16),
    (4, 1024, 1024, 64), (16, 1024, 1024, 64), (4, 2916, 1152, 64),
)  # fmt: skip
FACTS = {"dtype": "float32"}
FORMS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "ours": lambda x, num_tokens: tome_merge(x, num_tokens).tokens,
    "upstream": tome_per_round,
}


def rows(repeats: int, threads: int, small: bool) -> Iterator[dict[str, Any]]:
    for index, (*shape, num_tokens) in enumerate(SHAPES):
        if small:
            shape[0] = 1
        yield measure(index, shape, num_tokens, repeats, threads)
        if small:
            return


@torch.no_grad()
def measure(
    index: int, shape: list[int], num_tokens: int, repeats: int, threads: int
) -> dict[str, Any]:
    x = tokens(*shape)
    difference = (FORMS["ours"](x, num_tokens) - FORMS["upstream"](x, num_tokens)).abs().max()
    calls = {name: lambda _, form=form: form(x, num_tokens) for name, form in FORMS.items()}
    ms = medians(calls, repeats)
    peaks = {name: peak_elsewhere("tome", threads, name, str(index)) for name in FORMS}
    return {
        "shape": shape,
        "num_tokens": num_tokens,
        "ms": ms,
        "ratio": round(ms["upstream"] / ms["ours"], 2),
        "extra_peak_mb": peaks,
        "input_mb": round(x.nbytes / 2**20, 1),
        "largest_difference": float(difference),
    }


def tokens(batch: int, seqlen: int, dim: int) -> torch.Tensor:
    return torch.randn(batch, seqlen, dim, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def peak(form: str, index: str) -> float | None:
    """Megabytes that one call needs beyond its input, in this process."""
    *shape, num_tokens = SHAPES[int(index)]
    # the libraries' own set-up happens in a small call first
    FORMS[form](tokens(1, 64, shape[2]), 16)
    return extra_peak_mb(partial(FORMS[form], tokens(*shape), num_tokens))
