"""Laws of mamba2_decode_step: it is its parts, n steps are a scan, rows are independent."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import (
    device,
    on_device,
)
from tests.ops.common import exact, law, randn
from tests.ops.decode_step.common import VARIANTS, composed, run, step_inputs
from tvkernels import reference
from tvkernels.decode_step import mamba2_decode_step


def test_is_the_composition_of_its_parts(backend: str) -> None:
    inputs = step_inputs(batch=3, headdim=6)
    for got, want in zip(run(**inputs), composed(**inputs)):
        torch.testing.assert_close(got, want, **exact)


@law
@given(
    steps=st.integers(1, 9),
    before=st.integers(0, 6),
    width=st.integers(1, 5),
    more=st.integers(0, 3),
    groups=st.integers(1, 2),
    per_group=st.integers(1, 3),
)
def test_law_n_steps_are_the_convolution_and_the_scan(
    backend: str, steps: int, before: int, width: int, more: int, groups: int, per_group: int
) -> None:
    """From any position in the ring buffer, n steps give the states and outputs of a prefill."""
    heads, headdim, d_state = groups * per_group, 3, 4
    inputs = step_inputs(2, heads, headdim, groups, d_state, width, width + more)
    dim, channels = heads * headdim, len(inputs["conv1d_weight"])
    tokens = randn(2, steps, inputs["zxbcdt"].shape[1], seed=9)
    past = randn(2, channels, width - 1, seed=10)
    conv, ssm = torch.full_like(inputs["conv_state"], 1e3), inputs["ssm_state"].clone()
    for k in range(width - 1):
        conv[..., (before - 1 - k) % (width + more)] = past[..., width - 2 - k]
    outs = []
    for t in range(steps):
        seqlens = torch.full((2,), before + t, device=device())
        step = {**inputs, "conv_state": conv, "ssm_state": ssm, "cache_seqlens": seqlens}
        outs.append(mamba2_decode_step(**{**step, "zxbcdt": tokens[:, t]}))
    z, xbc, dt = tokens.split([dim, channels, heads], dim=-1)
    mixed, last = reference.causal_conv1d_fn_ref(
        xbc.mT, inputs["conv1d_weight"], inputs["conv1d_bias"], None, past, True, None, "silu"
    )
    bc = groups * d_state
    x, B, C = mixed.mT.split([dim, bc, bc], dim=-1)
    y, state = reference.mamba_recurrence_ref(
        x.unflatten(-1, (heads, -1)), dt, -inputs["A_log"].exp(),
        B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1)), 16, inputs["D"],
        z.unflatten(-1, (heads, -1)), inputs["dt_bias"], inputs["ssm_state"],
        dt_softplus=True, return_final_states=True,
    )  # fmt: skip
    torch.testing.assert_close(torch.stack(outs, 1), y.flatten(2), **exact)
    torch.testing.assert_close(ssm, state.to(ssm.dtype), atol=1e-6, rtol=1e-6)
    for k in range(width - 1):
        assert torch.equal(conv[..., (before + steps - 1 - k) % (width + more)], last[..., -1 - k])


def test_what_stands_in_a_padding_entry_does_not_matter(backend: str) -> None:
    inputs = on_device(step_inputs(**VARIANTS["padding"]))
    inputs["zxbcdt"][0] = torch.nan
    y, *states = run(**inputs)
    assert torch.equal(y[0], torch.zeros_like(y[0]))
    assert all(bool(t.isfinite().all()) for t in (y, *states))


@law
@given(order=st.permutations(range(4)), padded=st.sets(st.integers(0, 3)))
def test_law_rows_are_each_alone(backend: str, order: list[int], padded: set[int]) -> None:
    inputs = step_inputs(4, 2, 3, 1)
    pool = step_inputs(6, 2, 3, 1)
    rows = [-1 if i in padded else order[i] + 1 for i in range(4)]
    conv, ssm = pool["conv_state"].clone(), pool["ssm_state"].clone()
    index = torch.tensor(rows, device=device())
    states = {"conv_state": conv, "ssm_state": ssm}
    y = mamba2_decode_step(**{**inputs, **states}, state_batch_indices=index)
    expected = {name: pool[name].clone() for name in states}
    for i, row in enumerate(rows):
        alone = torch.zeros_like(y[:1])
        if row >= 0:
            one = {k: inputs[k][i : i + 1] for k in ("zxbcdt", "cache_seqlens")}
            mine = {k: v[row : row + 1] for k, v in expected.items()}
            alone = mamba2_decode_step(**{**inputs, **one, **mine})
        torch.testing.assert_close(y[i], alone[0], **exact)
    for name, state in states.items():
        torch.testing.assert_close(state, expected[name], **exact)
