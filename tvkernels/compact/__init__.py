"""Rows taken out of a sequence, while the other rows close the gaps.

    op.py         the public op: documentation, checks, autograd
    reference.py  the same in plain PyTorch
    kernel.py     both passes on Triton, and their launches

Each row is read once and written once.
"""

from tvkernels.compact.op import CompactResult, compact

__all__ = ["CompactResult", "compact"]
