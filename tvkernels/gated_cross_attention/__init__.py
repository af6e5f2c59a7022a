"""Transfer of dropped tokens into the text: `gated_cross_attention`."""

from tvkernels.gated_cross_attention.op import gated_cross_attention

__all__ = ["gated_cross_attention"]
