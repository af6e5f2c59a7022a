"""A Mamba-2 mixer's decode step between its projections, in place on its states.

    op.py           the public op: documentation, checks
    reference.py    plain PyTorch
    kernel.py       convolution, state and gate in one launch on Triton

The convolution's state is a ring buffer, so that no program shifts what another one reads.
"""

from tvkernels.decode_step.op import mamba2_decode_step

__all__ = ["mamba2_decode_step"]
