"""Inputs of replay_state_update, a float64 recurrence, and the plain steps to compare with."""

from __future__ import annotations

from typing import Any

import torch

from tests.contract import on_device
from tests.ops.common import randn
from tvkernels import replay_flush, replay_state_update, selective_state_update

HELD = ("state", "pending_x", "pending_dt", "pending_B", "written")


def naive_state(
    state: torch.Tensor,
    pending_x: torch.Tensor,
    pending_dt: torch.Tensor,
    pending_B: torch.Tensor,
    row: int,
    head: int,
    begin: int,
    end: int,
) -> torch.Tensor:
    """The state (dim, dstate) of one head behind its pending tokens."""
    wide = torch.promote_types(pending_x.dtype, torch.float32)
    g = head * pending_B.shape[2] // state.shape[1]
    now = state[row, head].to(wide)
    for t in range(begin, end):
        slot = t % pending_x.shape[1]
        step, decay = pending_dt[row, slot, head].to(wide)
        drive = step * pending_x[row, slot, head].to(wide)
        now = decay * now + drive[:, None] * pending_B[row, slot, g].to(wide)
    return now


def naive_flush(
    state: torch.Tensor,
    pending_x: torch.Tensor,
    pending_dt: torch.Tensor,
    pending_B: torch.Tensor,
    written: torch.Tensor,
    cache_seqlens: torch.Tensor,
    state_batch_indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(state, written), one head at a time."""
    after, behind = state.clone(), written.clone()
    held = (pending_x, pending_dt, pending_B)
    for b, end in enumerate(cache_seqlens.tolist()):
        row = b if state_batch_indices is None else int(state_batch_indices[b])
        for h in range(state.shape[1] if row >= 0 else 0):
            after[row, h] = naive_state(state, *held, row, h, int(written[row, h]), end)
            behind[row, h] = end
    return after, behind


def naive_replay(
    state: torch.Tensor,
    pending_x: torch.Tensor,
    pending_dt: torch.Tensor,
    pending_B: torch.Tensor,
    written: torch.Tensor,
    cache_seqlens: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    state_batch_indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """One entry and head at a time, in one wide dtype; (out, everything that is kept)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    many = x if x.ndim == 4 else x[:, None]
    dt, B, C = (t if x.ndim == 4 else t[:, None] for t in (dt, B, C))
    z = z if z is None or x.ndim == 4 else z[:, None]
    out = torch.zeros_like(many)
    held = [t.clone() for t in (state, pending_x, pending_dt, pending_B, written)]
    (_, seqlen, heads, _), slots = many.shape, pending_x.shape[1]
    for b in range(len(many)):
        row = b if state_batch_indices is None else int(state_batch_indices[b])
        end = int(cache_seqlens[b])
        for h in range(heads if row >= 0 else 0):
            g, begin = h * B.shape[2] // heads, int(written[row, h])
            now = naive_state(state, pending_x, pending_dt, pending_B, row, h, begin, end)
            if end - begin + seqlen > slots // 2:
                held[0][row, h], held[4][row, h] = now.to(state.dtype), end
            for i in range(seqlen):
                step = dt[b, i, h].to(wide)
                step = step if dt_bias is None else step + dt_bias[h].to(wide)
                if dt_softplus and step <= 20:
                    step = torch.log1p(torch.exp(step))
                step = min(max(step, step.new_tensor(dt_limit[0])), step.new_tensor(dt_limit[1]))
                decay = torch.exp(step * A[h].to(wide))
                new = many[b, i, h].to(wide)
                now = decay * now + (step * new)[:, None] * B[b, i, g].to(wide)
                y = (now * C[b, i, g].to(wide)).sum(-1)
                y = y if D is None else y + D[h].to(wide) * new
                if z is not None:
                    gate = z[b, i, h].to(wide)
                    y = y * gate / (1 + torch.exp(-gate))
                out[b, i, h] = y.to(out.dtype)
                at = (end + i) % slots
                held[1][row, at, h], held[3][row, at, g] = many[b, i, h], B[b, i, g]
                held[2][row, at, h] = torch.stack([step, decay]).to(pending_dt.dtype)
    return (out.view(x.shape), *held)


def run(**inputs: Any) -> tuple[torch.Tensor, ...]:
    held = {name: inputs[name].clone() for name in HELD}
    # what check_contract has cast to 16 bit is kept in float32
    if held["pending_dt"].dtype in (torch.bfloat16, torch.float16):
        held["pending_dt"] = held["pending_dt"].float()
    out = replay_state_update(**{**inputs, **held})
    return (out, *held.values())


def step_inputs(
    batch: int = 2,
    rows: int | None = None,
    seqlen: int = 1,
    capacity: int = 3,
    heads: int = 4,
    groups: int = 2,
    dim: int = 5,
    dstate: int = 6,
    **changes: Any,
) -> dict[str, Any]:
    """`rows` rows of which `batch` take `seqlen` tokens; row 0 has two pending tokens, 1 has none."""
    rows = batch if rows is None else rows
    begin = torch.arange(4, 4 + rows, dtype=torch.int32)
    steps = randn(rows, 2 * capacity, heads, seed=5).exp()
    inputs = {
        "state": randn(rows, heads, dim, dstate, seed=1),
        "pending_x": randn(rows, 2 * capacity, heads, dim, seed=2),
        "pending_dt": torch.stack([steps, (-steps).exp()], -1),
        "pending_B": randn(rows, 2 * capacity, groups, dstate, seed=3),
        "written": begin[:, None].repeat(1, heads),
        "cache_seqlens": begin[:batch] + (2 * (torch.arange(batch) % 2 == 0)),
        "x": randn(batch, seqlen, heads, dim, seed=6),
        "dt": randn(batch, seqlen, heads, seed=7),
        "A": -randn(heads, seed=8).exp(),
        "B": randn(batch, seqlen, groups, dstate, seed=9),
        "C": randn(batch, seqlen, groups, dstate, seed=10),
        "D": randn(heads, seed=11),
        "z": randn(batch, seqlen, heads, dim, seed=12),
        "dt_bias": randn(heads, seed=13),
        "dt_softplus": True,
    }
    return on_device({**inputs, **changes})


def named_rows(*rows: int) -> dict[str, Any]:
    """Entries of named rows out of 5, with two pending tokens in each."""
    seqlens = torch.tensor([max(row, 0) + 6 for row in rows])
    named = torch.tensor(rows, dtype=torch.int32)
    return {"rows": 5, "batch": len(rows), "cache_seqlens": seqlens, "state_batch_indices": named}


VARIANTS: dict[str, dict[str, Any]] = {
    "one token": {},
    "several tokens": {"seqlen": 2},
    "as many as there is room": {"seqlen": 3},
    "room for one": {"capacity": 1, "cache_seqlens": torch.tensor([5, 6])},
    "none pending": {"cache_seqlens": torch.tensor([4, 5])},
    "all pending": {"cache_seqlens": torch.tensor([7, 8])},
    "bare": {
        "dt": randn(2, 1, 4, seed=7).abs(), "D": None, "z": None, "dt_bias": None,
        "dt_softplus": False,
    },
    "clamped": {"dt_limit": (0.5, 0.75)},
    "long steps": {"dt": 30 * randn(2, 1, 4, seed=7).abs()},
    "one group": {"groups": 1},
    "group per head": {"groups": 4},
    "rows": named_rows(4, 1),
    "padding": named_rows(-1, 3),
    "padding beside row 0": named_rows(0, -1),
    "only padding": named_rows(-1, -7),
}  # fmt: skip


def fresh(batch: int, capacity: int, dtype: torch.dtype, **sizes: int) -> dict[str, torch.Tensor]:
    """What is kept of sequences that have no token yet; what is not to be read is NaN."""
    made = step_inputs(batch, capacity=capacity, **sizes)
    held = {name: made[name].to(dtype).fill_(torch.nan) for name in HELD[:-1]}
    held["pending_dt"] = held["pending_dt"].to(torch.promote_types(dtype, torch.float32))
    held["state"].zero_()
    return {**held, "written": torch.zeros_like(made["written"])}


def tokens(batch: int, seqlen: int, dtype: torch.dtype, **sizes: int) -> dict[str, Any]:
    """The arguments of a call for `seqlen` tokens, but for what is kept."""
    made = step_inputs(batch, seqlen=seqlen, **sizes)
    return {
        k: v.to(dtype) if isinstance(v, torch.Tensor) else v
        for k, v in made.items()
        if k not in (*HELD, "cache_seqlens")
    }


PER_TOKEN = ("x", "dt", "B", "C", "z")


def cut(given: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The call for the tokens start .. stop of `given`."""
    return {k: v[:, start:stop] if k in PER_TOKEN else v for k, v in given.items()}


def fed(
    held: dict[str, torch.Tensor], given: dict[str, Any], ends: list[int], start: int = 0
) -> torch.Tensor:
    """Outputs of calls that end behind the tokens `ends`, from `start` on; `held` goes on."""
    outs = []
    for stop in ends:
        seqlens = torch.full_like(held["written"][:, 0], start)
        outs.append(replay_state_update(**held, cache_seqlens=seqlens, **cut(given, start, stop)))
        start = stop
    return torch.cat(outs, 1)


def flushed(held: dict[str, torch.Tensor], length: int) -> torch.Tensor:
    """The state behind `length` tokens."""
    replay_flush(**held, cache_seqlens=torch.full_like(held["written"][:, 0], length))
    return held["state"]


def plain_steps(given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and the last state of selective_state_update, token by token from an empty state."""
    batch, seqlen, heads, dim = given["x"].shape
    dstate = given["B"].shape[3]
    state = given["x"].new_zeros(batch, heads, dim, dstate)
    A = given["A"][:, None, None].expand(heads, dim, dstate)
    D, bias = (given[name][:, None].expand(heads, dim) for name in ("D", "dt_bias"))
    outs = []
    for i in range(seqlen):
        x, dt, B, C, z = (given[name][:, i] for name in PER_TOKEN)
        dt = dt[..., None].expand(x.shape)
        outs.append(selective_state_update(state, x, dt, A, B, C, D, z, bias, True))
    return torch.stack(outs, 1), state
