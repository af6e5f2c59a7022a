"""The references of mamba_ssm and causal_conv1d: our ops in plain PyTorch, under their names.

Names, order and defaults of the arguments are the packages'. Each has gradients, those of one step
(which write their state in place) too, where the ops have none. They are functions of this module,
so that pickle finds them in a process that has no stand-ins.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import Tensor

from tvkernels.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from tvkernels.causal_conv1d import causal_conv1d_varlen_states as _varlen_states
from tvkernels.core.backend import use_backend
from tvkernels.core.checks import expect_flags
from tvkernels.rmsnorm import rmsnorm_fn
from tvkernels.selective_state_update import selective_state_update
from tvkernels.split_conv1d_scan import mamba_split_conv1d_scan_combined
from tvkernels.ssd import mamba_chunk_scan_combined

__all__ = [
    "causal_conv1d_ref",
    "causal_conv1d_update_ref",
    "causal_conv1d_varlen_states_ref",
    "mamba_chunk_scan",
    "mamba_split_conv1d_scan_ref",
    "rms_norm_ref",
    "selective_state_update_ref",
    "ssd_chunk_scan_combined_ref",
]

# the ops of one step, without the torch.no_grad around them
_conv_step = inspect.unwrap(causal_conv1d_update)
_scan_step = inspect.unwrap(selective_state_update)


@use_backend("reference")
def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
) -> Any:
    """causal_conv1d_fn in plain PyTorch."""
    return causal_conv1d_fn(
        x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation
    )


@use_backend("reference")
def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """causal_conv1d_update in plain PyTorch, with gradients."""
    return _conv_step(x, conv_state, weight, bias, activation, cache_seqlens)


@use_backend("reference")
def causal_conv1d_varlen_states_ref(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """causal_conv1d_varlen_states in plain PyTorch."""
    return _varlen_states(x, cu_seqlens, state_len)


@use_backend("reference")
def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """rmsnorm_fn in plain PyTorch, which always computes in float32 (float64 for float64 x)."""
    expect_flags("rms_norm_ref", upcast=upcast)
    return rmsnorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate)


@use_backend("reference")
def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """selective_state_update in plain PyTorch, with gradients."""
    return _scan_step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)


@use_backend("reference")
def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Any:
    """mamba_chunk_scan_combined in plain PyTorch."""
    return mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus=dt_softplus
    )


def ssd_chunk_scan_combined_ref(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Any:
    """mamba_chunk_scan_combined in plain PyTorch."""
    return mamba_chunk_scan(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus)


@use_backend("reference")
def mamba_split_conv1d_scan_ref(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Any:
    """mamba_split_conv1d_scan_combined in plain PyTorch."""
    return mamba_split_conv1d_scan_combined(
        zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size,
        dt_limit=dt_limit, activation=activation, rmsnorm_weight=rmsnorm_weight,
        rmsnorm_eps=rmsnorm_eps, outproj_weight=outproj_weight, outproj_bias=outproj_bias,
        headdim=headdim, ngroups=ngroups, norm_before_gate=norm_before_gate,
    )  # fmt: skip
