"""Normalisation: gated and grouped (rmsnorm_fn, layernorm_fn), and with a residual (rms_norm)."""

from tvkernels.rmsnorm.op import layernorm_fn, rms_norm, rmsnorm_fn

__all__ = ["layernorm_fn", "rms_norm", "rmsnorm_fn"]
