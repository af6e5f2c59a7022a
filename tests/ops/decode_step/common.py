"""Inputs of mamba2_decode_step and a float64 loop to compare with."""

from __future__ import annotations

from typing import Any

import torch

from tests.contract import (
    device,
)
from tests.ops.common import randn
from tvkernels import reference
from tvkernels.decode_step import mamba2_decode_step


def naive_step(
    zxbcdt: torch.Tensor,
    conv_state: torch.Tensor,
    ssm_state: torch.Tensor,
    cache_seqlens: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    A_log: torch.Tensor,
    D: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    activation: str | None = "silu",
    state_batch_indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """One entry, channel and state at a time, in one wide dtype; (y, conv state, SSM state)."""
    wide = torch.promote_types(zxbcdt.dtype, torch.float32)
    _, heads, headdim, d_state = ssm_state.shape
    dim, (channels, width) = heads * headdim, conv1d_weight.shape
    groups = (channels - dim) // (2 * d_state)
    y = zxbcdt.new_zeros(len(zxbcdt), dim)
    conv, ssm = conv_state.clone(), ssm_state.clone()
    for b in range(len(zxbcdt)):
        row = b if state_batch_indices is None else int(state_batch_indices[b])
        if row < 0:
            continue
        mixed = []
        for c in range(channels):
            t = int(cache_seqlens[b])
            conv[row, c, t % conv.shape[2]] = zxbcdt[b, dim + c]
            total = torch.zeros((), dtype=wide, device=zxbcdt.device)
            for k in range(width):
                x = conv[row, c, (t - k) % conv.shape[2]].to(wide)
                total = total + conv1d_weight[c, width - 1 - k].to(wide) * x
            total = total if conv1d_bias is None else total + conv1d_bias[c].to(wide)
            mixed.append(total if activation is None else total / (1 + torch.exp(-total)))
        for h in range(heads):
            g = h // (heads // groups)
            B = torch.stack(mixed[dim + g * d_state : dim + (g + 1) * d_state])
            start = dim + (groups + g) * d_state
            C = torch.stack(mixed[start : start + d_state])
            dt = zxbcdt[b, dim + channels + h].to(wide)
            dt = dt if dt_bias is None else dt + dt_bias[h].to(wide)
            dt = torch.log1p(torch.exp(dt)) if dt < 30 else dt
            dt = min(max(dt, dt.new_tensor(dt_limit[0])), dt.new_tensor(dt_limit[1]))
            decay = torch.exp(-dt * torch.exp(A_log[h].to(wide)))
            for p in range(headdim):
                x = mixed[h * headdim + p]
                new = decay * ssm[row, h, p].to(wide) + dt * x * B
                out = (new * C).sum()
                out = out if D is None else out + D[h].to(wide) * x
                gate = zxbcdt[b, h * headdim + p].to(wide)
                y[b, h * headdim + p] = (out * gate / (1 + torch.exp(-gate))).to(y.dtype)
                ssm[row, h, p] = new.to(ssm.dtype)
    return y, conv, ssm


def run(conv_state: torch.Tensor, ssm_state: torch.Tensor, **inputs: Any) -> tuple[Any, ...]:
    conv, ssm = conv_state.clone(), ssm_state.clone()
    return mamba2_decode_step(conv_state=conv, ssm_state=ssm, **inputs), conv, ssm


def step_inputs(
    batch: int = 2,
    heads: int = 4,
    headdim: int = 5,
    groups: int = 2,
    d_state: int = 3,
    width: int = 4,
    state_len: int = 4,
    **changes: Any,
) -> dict[str, Any]:
    dim = heads * headdim
    channels = dim + 2 * groups * d_state
    inputs = {
        "zxbcdt": randn(batch, dim + channels + heads, seed=1),
        "conv_state": randn(batch, channels, state_len, seed=2),
        "ssm_state": randn(batch, heads, headdim, d_state, seed=3),
        "cache_seqlens": torch.arange(2, 2 + batch, device=device()),
        "conv1d_weight": randn(channels, width, seed=4),
        "conv1d_bias": randn(channels, seed=5),
        "dt_bias": randn(heads, seed=6),
        "A_log": randn(heads, seed=7),
        "D": randn(heads, seed=8),
    }
    return {**inputs, **changes}


POOL = {"conv_state": randn(5, 32, 4, seed=2), "ssm_state": randn(5, 4, 5, 3, seed=3)}
VARIANTS: dict[str, dict[str, Any]] = {
    "model": {},
    "bare": {"conv1d_bias": None, "dt_bias": None, "D": None, "activation": None},
    "clamped": {"dt_limit": (0.5, 0.75)},
    "one group": {"groups": 1},
    "group per head": {"groups": 4},
    "one head, one sequence": {"heads": 1, "groups": 1, "batch": 1},
    "one tap": {"width": 1, "state_len": 1},
    "longer state": {"width": 3, "state_len": 7},
    "powers of two": {"headdim": 4, "d_state": 8},
    "rows": {**POOL, "state_batch_indices": torch.tensor([4, 1], dtype=torch.int32)},
    "padding": {**POOL, "state_batch_indices": torch.tensor([-1, 3])},
    "padding beside row 0": {**POOL, "state_batch_indices": torch.tensor([0, -1])},
    "only padding": {**POOL, "state_batch_indices": torch.tensor([-1, -7])},
}


def composed(
    zxbcdt: torch.Tensor,
    conv_state: torch.Tensor,
    ssm_state: torch.Tensor,
    cache_seqlens: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor,
    dt_bias: torch.Tensor,
    A_log: torch.Tensor,
    D: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The references of the two ops that it is made of, with the mixer's splits between them."""
    heads, headdim, d_state = ssm_state.shape[1:]
    dim, channels = heads * headdim, len(conv1d_weight)
    conv, ssm = conv_state.clone(), ssm_state.clone()
    z, xbc, dt = zxbcdt.split([dim, channels, heads], dim=-1)
    mixed = reference.causal_conv1d_update_ref(
        xbc[..., None], conv, conv1d_weight, conv1d_bias, "silu", cache_seqlens
    )[..., 0]
    bc = (channels - dim) // 2
    x, B, C = mixed.split([dim, bc, bc], dim=-1)

    def wide(t: torch.Tensor) -> torch.Tensor:
        return t[..., None].expand(*t.shape, headdim)

    y = reference.selective_state_update_ref(
        ssm, x.unflatten(-1, (heads, -1)), wide(dt),
        -A_log.exp()[:, None, None].expand(heads, headdim, d_state),
        B.unflatten(-1, (-1, d_state)), C.unflatten(-1, (-1, d_state)), wide(D),
        z.unflatten(-1, (heads, -1)), wide(dt_bias), True,
    )  # fmt: skip
    return y.flatten(1), conv, ssm
