"""Token selection: `attention_topk`, `attention_topk_hidden`, `uniform_topk`, `dropped_indices`.

    op.py             the public ops: documentation, checks, autograd
    reference.py      the same in plain PyTorch
    kernel.py         the order of the launches
    scores_kernel.py  scores: query rows against keys, softmax, mean over rows
    select_kernel.py  the ordered top-k of a span

Only the logits of the query rows are stored, and no key. TERMS is the number of 16 bit numbers that
a float32 operand of a dot is split into: a value, and what its rounding lost.
"""

from tvkernels.attention_topk.op import (
    TopKResult,
    attention_topk,
    attention_topk_hidden,
    dropped_indices,
    uniform_topk,
)

__all__ = [
    "TopKResult",
    "attention_topk",
    "attention_topk_hidden",
    "dropped_indices",
    "uniform_topk",
]
