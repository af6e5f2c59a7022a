"""Inputs of the Mamba-2 scan and a naive float64 loop to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.contract import (
    check_contract,
    on_device,
)
from tvkernels.ssd import mamba_chunk_scan_combined

GRADS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
Tensors = dict[str, Any]


def naive_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    operand: torch.dtype | None = None,
) -> tuple[torch.Tensor, ...]:
    """Row by row, head by head, token by token, one rounding at the end.

    With `operand`, what enters the products is rounded to it, as matrix units take it: forward what
    the state takes of a token, backward the cotangent of y, the output before the gate.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    batch, seqlen, nheads, headdim = x.shape
    ngroups, d_state = B.shape[2:]

    def run(b: int, h: int, start: int, stop: int, state: torch.Tensor) -> tuple[Any, Any]:
        group = h // (nheads // ngroups)
        rows = []
        for t in range(start, stop):
            if seq_idx is not None and t > start and seq_idx[b, t] != seq_idx[b, t - 1]:
                state = torch.zeros_like(state)
            step = dt[b, t, h].to(wide)
            if dt_bias is not None:
                step = step + dt_bias[h].to(wide)
            if dt_softplus:
                step = F.softplus(step)
            step = step.clamp(*dt_limit)
            token = x[b, t, h].to(wide)
            state = torch.exp(step * A[h].to(wide)) * state
            taken = (step * token).to(operand or wide).to(wide)
            state = state + torch.outer(taken, B[b, t, group].to(wide))
            y = state @ C[b, t, group].to(wide)
            if D is not None:
                y = y + D[h].to(wide) * token
            if operand is not None and y.requires_grad:
                y.register_hook(lambda grad: grad.to(operand).to(wide))
            if z is not None:
                gate = z[b, t, h].to(wide)
                y = y * gate * torch.sigmoid(gate)
            rows.append(y)
        return rows, state

    def first(b: int, h: int) -> torch.Tensor:
        if initial_states is not None:
            return initial_states[b, h].to(wide)
        return x.new_zeros(headdim, d_state, dtype=wide)

    whole = [[run(b, h, 0, seqlen, first(b, h)) for h in range(nheads)] for b in range(batch)]
    out = torch.stack([torch.stack([torch.stack(rows) for rows, _ in heads], 1) for heads in whole])
    results = [out.to(x.dtype)]
    if return_final_states:
        results.append(torch.stack([torch.stack([state for _, state in heads]) for heads in whole]))
    if return_varlen_states:
        assert cu_seqlens is not None
        borders = cu_seqlens.tolist()
        states = []
        for start, stop in pairwise(borders):
            zero = x.new_zeros(headdim, d_state, dtype=wide)
            entry = [first(0, h) if start == 0 < stop else zero for h in range(nheads)]
            states.append(torch.stack([run(0, h, start, stop, entry[h])[1] for h in range(nheads)]))
        results.append(torch.stack(states).to(C.dtype))
    return tuple(results)


def check_scan(backend: str, inputs: Tensors, dtype: torch.dtype = torch.float32) -> None:
    """Check the contract. The kernel multiplies 16-bit operands if the tensors are 16 bit and the
    reference does not, so each has its own plain form to be compared with."""
    plain = None
    if backend == "triton" and dtype.itemsize == 2:
        plain = partial(naive_scan, operand=dtype)
    grads = [name for name in GRADS if name in inputs and 0 not in inputs[name].stride()]
    check_contract(
        mamba_chunk_scan_combined, naive_scan, inputs, dtype=dtype, wrt=grads, plain=plain
    )


def scan_inputs(
    batch: int = 2,
    seqlen: int = 70,
    nheads: int = 4,
    headdim: int = 5,
    ngroups: int = 2,
    d_state: int = 6,
    seed: int = 0,
    bounded: bool = False,
    **changes: Any,
) -> Tensors:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": randn(batch, seqlen, nheads, headdim),
        "dt": randn(batch, seqlen, nheads) - 2,
        "A": -1 - 7 * rand(nheads),
        "B": randn(batch, seqlen, ngroups, d_state),
        "C": randn(batch, seqlen, ngroups, d_state),
        "chunk_size": 16,
        "D": randn(nheads),
        "z": randn(batch, seqlen, nheads, headdim),
        "dt_bias": randn(nheads),
        "initial_states": randn(batch, nheads, headdim, d_state),
        "dt_softplus": True,
        "return_final_states": True,
    }
    if bounded:
        inputs |= {"D": inputs["D"].tanh(), "z": 2 * inputs["z"].tanh()}
    return on_device({k: v for k, v in {**inputs, **changes}.items() if v is not None})


def bare_inputs(seqlen: int, **changes: Any) -> Tensors:
    bare = dict.fromkeys(("D", "z", "dt_bias", "initial_states"))
    return scan_inputs(seqlen=seqlen, **{**bare, **changes})


both = pytest.mark.usefixtures("backend")


def packed(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(seq_idx (1, seqlen), cu_seqlens) of sequences of these lengths."""
    each = torch.tensor(lengths)
    cu_seqlens = F.pad(each.cumsum(0), (1, 0)).int()
    return on_device((torch.arange(len(lengths)).repeat_interleave(each)[None].int(), cu_seqlens))


SEQ_IDX, CU_SEQLENS = packed([3, 0, 30, 1, 36])
# a sequence number repeats, boundaries fall inside a chunk, and the numbers are not in order
RETURNING = torch.tensor([[7] * 20 + [3] * 5 + [7] * 20 + [7] * 5 + [0] * 20] * 2)
VARIANTS: dict[str, Callable[..., Tensors]] = {
    "everything": scan_inputs,
    "nothing else": lambda **more: bare_inputs(70, **more, return_final_states=False),
    "D per channel, groups = heads": lambda **more: scan_inputs(
        **more,
        ngroups=4,
        D=torch.linspace(-1, 1, 4 * more.get("headdim", 5)).double().reshape(4, -1),
    ),
    "one group, no gate": lambda **more: scan_inputs(**more, ngroups=1, z=None),
    "dt_limit": lambda **more: scan_inputs(**more, dt_limit=(0.05, 0.3)),
    "no softplus": lambda **more: scan_inputs(**more, dt_softplus=False, dt_bias=None),
    "seq_idx": lambda **more: scan_inputs(**more, seq_idx=RETURNING),
    "varlen": lambda **more: scan_inputs(
        **more, batch=1, seq_idx=SEQ_IDX, cu_seqlens=CU_SEQLENS, return_varlen_states=True
    ),
    "varlen without seq_idx": lambda **more: scan_inputs(
        **more, batch=1, cu_seqlens=CU_SEQLENS.long(), return_varlen_states=True
    ),
    "varlen states only": lambda **more: scan_inputs(
        **more,
        batch=1,
        seq_idx=SEQ_IDX.long(),
        cu_seqlens=CU_SEQLENS,
        return_varlen_states=True,
        return_final_states=False,
    ),
}
