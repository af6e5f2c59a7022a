"""Attention over a prefix that rows share, and over each row's own tail: `prefix_attention`.

    op.py            the public op: documentation, checks
    reference.py     the same in plain PyTorch
    kernel.py        launches, how keys are split
    attend_kernel.py  attention over one split of the keys, then the sum of the splits

Keys and values are not repeated over query heads, and a shared prefix not over batch rows.
"""

from tvkernels.prefix_attention.op import prefix_attention

__all__ = ["prefix_attention"]
