"""Causal depthwise convolution along the sequence: whole, one step in place, and varlen states."""

from tvkernels.causal_conv1d.op import (
    causal_conv1d_fn,
    causal_conv1d_update,
    causal_conv1d_varlen_states,
)

__all__ = ["causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_varlen_states"]
