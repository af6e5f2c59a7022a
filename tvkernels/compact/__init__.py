"""Rows out of a sequence, and the rest moved together."""

from tvkernels.compact.op import CompactResult, compact

__all__ = ["CompactResult", "compact"]
