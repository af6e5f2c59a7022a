"""Mamba-2 state-space duality: the scan of whole sequences, in chunks."""

from tvkernels.ssd.op import mamba_chunk_scan_combined

__all__ = ["mamba_chunk_scan_combined"]
