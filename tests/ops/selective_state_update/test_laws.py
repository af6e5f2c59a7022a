"""Laws of selective_state_update: sums written out, groups and rows are independent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import device
from tests.ops.common import exact, law, randn
from tests.ops.selective_state_update.common import run, step_inputs
from tvkernels.selective_state_update import selective_state_update


def test_shared_values_are_computed_once_per_head() -> None:
    batch, nheads, dim, dstate = 1, 3, 16, 32
    shared = {"A": -torch.ones(nheads, 1, 1).expand(nheads, dim, dstate).contiguous()}
    expanded = {"A": (-torch.ones(nheads, 1, 1)).expand(nheads, dim, dstate)}
    tokens = torch.ones(batch, nheads, 1).expand(batch, nheads, dim)
    states = torch.ones(batch, 1, dstate)

    def exps(A: torch.Tensor) -> int:
        sizes = []
        real = torch.exp
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "exp", lambda t: sizes.append(t.numel()) or real(t))
            state = torch.zeros(batch, nheads, dim, dstate)
            selective_state_update(state, tokens, tokens, A, states, states)
        return sum(sizes)

    assert exps(**shared) == nheads * dim * dstate
    assert exps(**expanded) == nheads


@law
@given(
    steps=st.integers(1, 6),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    dim=st.integers(1, 4),
    dstate=st.integers(1, 5),
)
def test_law_n_steps_are_the_written_out_sum(
    backend: str, steps: int, groups: int, per_group: int, dim: int, dstate: int
) -> None:
    """y_t = sum over s <= t of C_t . B_s exp(A (dt_{s+1} + ... + dt_t)) dt_s x_s."""
    nheads = groups * per_group
    x, dt = randn(steps, nheads, dim), randn(steps, nheads, dim, seed=1).exp()
    A = -randn(nheads, dim, dstate, seed=2).exp()
    B, C = randn(steps, groups, dstate, seed=3), randn(steps, groups, dstate, seed=4)
    wide_B, wide_C = (t.repeat_interleave(per_group, 1)[:, :, None] for t in (B, C))
    state = torch.zeros(1, nheads, dim, dstate, dtype=x.dtype, device=device())
    for t in range(steps):
        y = selective_state_update(
            state, x[t : t + 1], dt[t : t + 1], A, B[t : t + 1], C[t : t + 1]
        )
        expected = torch.zeros_like(state[0])
        for s in range(t + 1):
            decay = torch.exp(A * dt[s + 1 : t + 1].sum(0)[..., None])
            expected += decay * (dt[s] * x[s])[..., None] * wide_B[s]
        torch.testing.assert_close(state[0], expected, **exact)
        torch.testing.assert_close(y[0], (expected * wide_C[t]).sum(-1), **exact)


@law
@given(group=st.integers(0, 1), scale=st.floats(-3, 3))
def test_law_groups_are_independent(backend: str, group: int, scale: float) -> None:
    inputs = step_inputs()
    out, state = run(**inputs)
    changed = inputs["B"].clone()
    changed[:, group] *= scale
    other_out, other_state = run(**{**inputs, "B": changed})
    others = slice(2, 4) if group == 0 else slice(0, 2)
    assert torch.equal(out[:, others], other_out[:, others])
    assert torch.equal(state[:, others], other_state[:, others])


@law
@given(order=st.permutations(range(4)), padded=st.sets(st.integers(0, 3)))
def test_law_rows_are_each_alone(backend: str, order: list[int], padded: set[int]) -> None:
    pool = randn(6, 2, 3, 4)
    x, A = randn(4, 2, 3, seed=1), -randn(2, 3, 4, seed=2).exp()
    B, C = randn(4, 1, 4, seed=3), randn(4, 1, 4, seed=4)
    rows = [-1 if i in padded else order[i] + 1 for i in range(4)]
    state = pool.clone()
    indices = torch.tensor(rows, device=device())
    out = selective_state_update(state, x, x, A, B, C, state_batch_indices=indices)
    expected = pool.clone()
    for i, row in enumerate(rows):
        alone = torch.zeros_like(x[i])
        if row >= 0:
            one = slice(i, i + 1)
            after = expected[row : row + 1].clone()
            alone = selective_state_update(after, x[one], x[one], A, B[one], C[one])[0]
            expected[row] = after[0]
        torch.testing.assert_close(out[i], alone, **exact)
    torch.testing.assert_close(state, expected, **exact)
