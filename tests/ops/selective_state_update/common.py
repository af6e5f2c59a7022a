"""Inputs of selective_state_update and a float64 recurrence to compare with."""

from __future__ import annotations

from typing import Any

import torch

from tests.contract import on_device
from tests.ops.common import randn
from tvkernels.selective_state_update import selective_state_update


def naive_step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One entry, head and channel at a time, in one wide dtype; (out, new state). Heads given."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out, after = torch.zeros_like(x), state.clone()
    (batch, nheads, dim), ngroups = x.shape, B.shape[1]
    for b in range(batch):
        row = b if state_batch_indices is None else int(state_batch_indices[b])
        for h in range(nheads if row >= 0 else 0):
            g = h * ngroups // nheads
            for p in range(dim):
                step = dt[b, h, p].to(wide)
                step = step if dt_bias is None else step + dt_bias[h, p].to(wide)
                if dt_softplus and step <= 20:
                    step = torch.log1p(torch.exp(step))
                new = torch.exp(step * A[h, p].to(wide)) * state[row, h, p].to(wide)
                new = new + step * x[b, h, p].to(wide) * B[b, g].to(wide)
                y = (new * C[b, g].to(wide)).sum()
                if D is not None:
                    y = y + D[h, p].to(wide) * x[b, h, p].to(wide)
                if z is not None:
                    gate = z[b, h, p].to(wide)
                    y = y * gate / (1 + torch.exp(-gate))
                out[b, h, p], after[row, h, p] = y.to(x.dtype), new.to(state.dtype)
    return out, after


def run(state: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mine = state.clone()
    return selective_state_update(mine, **inputs), mine


def step_inputs(**changes: Any) -> dict[str, Any]:
    inputs = {
        "state": randn(2, 4, 5, 6, seed=1),
        "x": randn(2, 4, 5, seed=2),
        "dt": randn(2, 4, 5, seed=3),
        "A": -randn(4, 5, 6, seed=4).exp(),
        "B": randn(2, 2, 6, seed=5),
        "C": randn(2, 2, 6, seed=6),
        "D": randn(4, 5, seed=7),
        "z": randn(2, 4, 5, seed=8),
        "dt_bias": randn(4, 5, seed=9),
        "dt_softplus": True,
    }
    return {**inputs, **on_device(changes)}


def sized(batch: int, nheads: int, ngroups: int, dim: int, dstate: int) -> dict[str, Any]:
    """Inputs of another size, nothing shared."""
    return step_inputs(
        state=randn(batch, nheads, dim, dstate, seed=1),
        x=randn(batch, nheads, dim, seed=2),
        dt=randn(batch, nheads, dim, seed=3),
        A=-randn(nheads, dim, dstate, seed=4).exp(),
        B=randn(batch, ngroups, dstate, seed=5),
        C=randn(batch, ngroups, dstate, seed=6),
        D=randn(nheads, dim, seed=7),
        z=randn(batch, nheads, dim, seed=8),
        dt_bias=randn(nheads, dim, seed=9),
    )


# what a Mamba-2 layer passes: one value per head, expanded over its channels and states
PER_HEAD = {
    "dt": randn(2, 4, 1, seed=3).expand(2, 4, 5),
    "A": (-randn(4, 1, 1, seed=4).exp()).expand(4, 5, 6),
    "D": randn(4, 1, seed=7).expand(4, 5),
    "dt_bias": randn(4, 1, seed=9).expand(4, 5),
}
ROWS = {"state": randn(5, 4, 5, 6, seed=1)}
VARIANTS = {
    "full": {},
    "bare": {
        # without a softplus the step has to be positive as it comes
        "dt": randn(2, 4, 5, seed=3).abs(),
        "D": None,
        "z": None,
        "dt_bias": None,
        "dt_softplus": False,
    },
    "per head": PER_HEAD,
    "per head, full dt": {**PER_HEAD, "dt": randn(2, 4, 5, seed=3)},
    "per head, full bias": {**PER_HEAD, "dt_bias": randn(4, 5, seed=9)},
    "per head, no bias": {**PER_HEAD, "dt_bias": None},
    "A of a channel": {**PER_HEAD, "A": (-randn(4, 5, 1, seed=4).exp()).expand(4, 5, 6)},
    "A of a state": {**PER_HEAD, "A": (-randn(4, 1, 6, seed=4).exp()).expand(4, 5, 6)},
    "long steps": {"dt": 30 * randn(2, 4, 5, seed=3).abs()},
    "one group": {"B": randn(2, 1, 6), "C": randn(2, 1, 6, seed=1)},
    "group per head": {"B": randn(2, 4, 6), "C": randn(2, 4, 6, seed=1)},
    "rows": {**ROWS, "state_batch_indices": torch.tensor([4, 1], dtype=torch.int32)},
    "padding": {**ROWS, "state_batch_indices": torch.tensor([-1, 3])},
    "padding beside row 0": {**ROWS, "state_batch_indices": torch.tensor([0, -1])},
    "only padding": {**ROWS, "state_batch_indices": torch.tensor([-1, -7])},
}
