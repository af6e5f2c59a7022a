"""A Mamba-2 mixer's decode step between its projections, in place on its states."""

from tvkernels.decode_step.op import mamba2_decode_step

__all__ = ["mamba2_decode_step"]
