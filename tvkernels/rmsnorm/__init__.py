"""Normalisation: gated and grouped (rmsnorm_fn, layernorm_fn), and with a residual (rms_norm).

    op.py         the public ops: documentation, checks, autograd
    reference.py  the same in plain PyTorch
    kernel.py     both passes on Triton, and their launches

The sums of a row are made once and stay in registers.
"""

from tvkernels.rmsnorm.op import layernorm_fn, rms_norm, rmsnorm_fn

__all__ = ["layernorm_fn", "rms_norm", "rmsnorm_fn"]
