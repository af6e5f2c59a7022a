"""Token merging: `tome_merge` against upstream's formulation."""

from __future__ import annotations

import torch

from benchmarks.cpu.measure import Comparison, largest, still
from benchmarks.timing.peers import tome_per_round
from tvkernels.tome import tome_merge

# (batch, seqlen, dim, num_tokens): SigLIP so400m at 384 px and at 224 px, CLIP L/14 at 336 px, ViT
# B/16 at 224 px; then clips of four frames: of 256 tokens (few and many) and of SigLIP's 729
ROWS = (
    (16, 729, 1152, 16), (16, 256, 1152, 16), (16, 576, 1024, 16), (16, 196, 768, 16),
    (4, 1024, 1024, 64), (16, 1024, 1024, 64), (4, 2916, 1152, 64),
)  # fmt: skip
FACTS = {"dtype": "float32"}
FORMS = {"ours": tome_merge, "upstream": tome_per_round}


def row(batch: int, seqlen: int, dim: int, num_tokens: int, small: bool) -> Comparison:
    shape = [1 if small else batch, seqlen, dim]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    facts = {"shape": shape, "num_tokens": num_tokens, "input_mb": round(x.nbytes / 2**20, 1)}

    def merge(form: str) -> torch.Tensor:
        return FORMS[form](x, num_tokens)[0]

    forward = {"forward": still(merge)}
    return Comparison(tuple(FORMS), facts, forward, forward, largest)
