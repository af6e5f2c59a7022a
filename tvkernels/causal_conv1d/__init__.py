"""Causal depthwise convolution along the sequence: whole, one step in place, and varlen states.

    op.py              the public ops: documentation, checks, autograd
    reference.py       plain PyTorch
    kernel.py          whole sequences on Triton, forward and backward
    state_kernel.py    the decode step and the states of packed tokens on Triton

Sums are float32; the state of a decode step is shifted, or a ring buffer with cache_seqlens.
"""

from tvkernels.causal_conv1d.op import (
    causal_conv1d_fn,
    causal_conv1d_update,
    causal_conv1d_varlen_states,
)

__all__ = ["causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_varlen_states"]
