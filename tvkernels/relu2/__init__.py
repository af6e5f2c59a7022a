"""The activation between the two products of a Nemotron-H MLP: max(x, 0)^2.

    op.py         the public op: documentation, checks, autograd
    reference.py  the same in plain PyTorch
    kernel.py     both passes on Triton, and their launches

Each element is read once and written once.
"""

from tvkernels.relu2.op import relu2

__all__ = ["relu2"]
