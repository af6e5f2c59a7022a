"""The hidden attention of a Mamba-2 layer, without a matrix of all rows by all columns.

    M[i, j] = (C_i . B_j) exp(c_i - c_j) dt_j  for j <= i,   c = running sum of dt_t A

of each head; a group of heads shares B and C. The scan computes y = M x + D x (arXiv 2405.21060):
its output for x = 1 on a group's tokens and 0 elsewhere is the signed sum of M over the group.
TimeViper's released code leaves dt_j out and takes absolute values; its paper (arXiv 2511.16595,
equation 8) has the discretised B, which holds dt_j. `with_dt` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper_fast.analysis.rows import block_of, check_rows
from timeviper_fast.model.nemotron_h import Mamba2
from tvkernels import causal_conv1d_fn, mamba_chunk_scan_combined

__all__ = ["ScanWeights", "mamba_group_sums", "mamba_rows", "scan_weights"]

# A smaller dt changes no decay, and x / dt stays finite in float32.
_LEAST_DT = 1e-20


class ScanWeights(NamedTuple):
    """What M of a layer is made of, in float32; in float64 of a float64 model.

    Attributes:
        dt: (n, nheads), behind softplus and clamp.
        A: (nheads,), negative.
        B, C: (n, ngroups, d_state), behind the convolution.
    """

    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


def scan_weights(mixer: Mamba2, x: Tensor) -> ScanWeights:
    """The scan's weights of a layer's input.

    Args:
        mixer: the layer's Mamba-2 mixer.
        x: (1, n, d_model), behind the layer's norm, from the first token of the sequence on.
    """
    config, wide = mixer.config, torch.promote_types(x.dtype, torch.float32)
    _, xBC, dt = mixer.in_proj(x).split(mixer.widths, dim=-1)
    # the convolution is depthwise: the channels of B and C do not need those of x
    start, bias = config.d_inner, mixer.conv1d.bias
    mixed = causal_conv1d_fn(
        xBC[..., start:].transpose(1, 2),
        mixer.conv1d.weight.squeeze(1)[start:],
        None if bias is None else bias[start:],
        activation="silu",
    )
    assert isinstance(mixed, Tensor)
    BC = mixed[0].T.to(wide).unflatten(-1, (2, config.n_groups, config.ssm_state_size))
    delta = F.softplus(dt[0].to(wide) + mixer.dt_bias.to(wide)).clamp(*config.time_step_limit)
    return ScanWeights(delta, -torch.exp(mixer.A_log.to(wide)), BC[:, 0], BC[:, 1])


def mamba_group_sums(
    weights: ScanWeights, indicator: Tensor, chunk_size: int, *, with_dt: bool = True
) -> Tensor:
    """Signed sums of M over each group, of every row: one scan of the groups' indicators.

    Memory and time are linear: 2 n nheads groups numbers beside the scan's own states.

    Args:
        weights: of the layer.
        indicator: (n, groups), 1 where a token belongs to a group; groups may overlap.
        chunk_size: of the scan.
        with_dt: whether M holds dt_j.

    Returns:
        (nheads, n, groups) of the weights' dtype.
    """
    dt, A, B, C = weights
    values = indicator.to(dt)[:, None].expand(-1, dt.shape[1], -1)
    if not with_dt:
        # the scan multiplies by dt_j
        dt = dt.clamp_min(_LEAST_DT)
        values = values / dt[..., None]
    given = (values[None].contiguous(), dt[None], A, B[None].contiguous(), C[None].contiguous())
    out = mamba_chunk_scan_combined(*given, chunk_size)
    assert isinstance(out, Tensor)
    return out[0].transpose(0, 1)


def mamba_rows(
    weights: ScanWeights, rows: Tensor, *, with_dt: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chosen rows of M by all columns, signed, some rows at a time, computed in float64.

    Decays are differences of running sums. In float32 they would be off by 2e-3 at 131,072 tokens.

    Args:
        weights: of the layer.
        rows: (r,) int64 numbers of tokens.
        with_dt: whether M holds dt_j.

    Yields:
        (b,) of `rows` and their weights (nheads, b, n) float64, 0 behind the row itself. A block
        has at most 2^24 weights, or one row.

    Raises:
        ValueError: a row that is no token.
    """
    dt, A, B = (x.double() for x in weights[:3])
    length, heads = dt.shape
    check_rows("mamba_rows", rows, 0, length)
    running = (dt * A).cumsum(0).T
    columns = torch.arange(length, device=dt.device)
    for block in rows.to(dt.device).split(block_of(heads * length)):
        decay = running[:, block, None] - running[:, None]
        decay = decay.masked_fill_(columns > block[:, None], -math.inf).exp_()
        products = torch.einsum("bgs,mgs->gbm", weights.C[block].double(), B)
        # a group of heads shares the products
        decay.unflatten(0, (len(products), -1)).mul_(products[:, None])
        if with_dt:
            decay *= dt.T[:, None]
        yield block, decay
