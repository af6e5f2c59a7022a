"""A prompt in chunks and then token by token: each part takes over the states of the one before."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.contract import assert_close_by_rule, cast, device, errors, on_device
from tests.ops.ssd.common import Tensors, naive_scan, scan_inputs
from tests.ops.test_split_conv1d_scan import (
    D_BC,
    D_STATE,
    DIM,
    HEADDIM,
    NHEADS,
    WIDTH,
    mixer_inputs,
    naive_mixer,
)
from tvkernels import mamba2_decode_step, mamba_split_conv1d_scan_combined, selective_state_update
from tvkernels.ssd import mamba_chunk_scan_combined

DTYPES = [torch.float32, torch.bfloat16]
OF_TOKENS = ("x", "dt", "B", "C", "z")


def part(inputs: Tensors, start: int, stop: int) -> Tensors:
    return {k: v[:, start:stop] if k in OF_TOKENS else v for k, v in inputs.items()}


def step(inputs: Tensors, t: int, state: torch.Tensor, **changes: torch.Tensor) -> torch.Tensor:
    """One token of the scan by the decode step, in place on `state`."""
    nheads, headdim, d_state = state.shape[1:]
    x, dt, B, C, z = ((inputs | changes)[k] if k in changes else inputs[k][:, t] for k in OF_TOKENS)
    A = inputs["A"][:, None, None].expand(nheads, headdim, d_state)
    D, dt_bias = (inputs[k][:, None].expand(nheads, headdim) for k in ("D", "dt_bias"))
    steps = dt[..., None].expand(x.shape)
    how = {} if "dt" in changes else {"dt_bias": dt_bias, "dt_softplus": True}
    return selective_state_update(state, x, steps, A, B, C, D=D, z=z, **how)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cuts", [(0, 82), (0, 64, 82), (0, 1, 70, 82), (0, 13, 39, 40, 82)])
def test_chunks_of_a_prompt_and_then_steps_are_one_pass(
    backend: str, cuts: tuple[int, ...], dtype: torch.dtype
) -> None:
    total, prompt = 90, cuts[-1]
    inputs = scan_inputs(seqlen=total, headdim=32, d_state=32, bounded=True)
    ours = cast(on_device(inputs), dtype)
    # a cache holds its states in float32
    state = ours["initial_states"] = ours["initial_states"].float()
    outs = []
    for start, stop in pairwise(cuts):
        chunk = part(ours, start, stop) | {"initial_states": state}
        out, state = mamba_chunk_scan_combined(**chunk)
        outs.append(out)
    assert state.dtype == torch.float32
    assert state.is_contiguous()
    cache = torch.empty_like(state).copy_(state)
    # a step with dt = 0 leaves the state bit for bit as it was
    step(ours, prompt, cache, dt=torch.zeros_like(ours["dt"][:, 0]))
    assert torch.equal(cache, state)
    outs += [step(ours, t, cache)[:, None] for t in range(prompt, total)]
    plain = naive_scan(**ours, operand=dtype if backend == "triton" else None)
    truth = naive_scan(**cast(ours, torch.float64))
    assert_close_by_rule(torch.cat(outs, 1), plain[0], truth[0])
    assert_close_by_rule(cache, plain[1], truth[1], "state")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_step_of_the_mixer_takes_over_a_prompt(backend: str, dtype: torch.dtype) -> None:
    total, prompt = 40, 29
    made = mixer_inputs(rmsnorm_weight=None, outproj_weight=None, outproj_bias=None, seqlen=total)
    made |= {"D": made["D"][:, 0], "headdim": HEADDIM, "A": -made["A"].abs()}
    ours = cast(on_device(made), dtype)
    ours["return_final_states"] = True
    tokens = ours["zxbcdt"]
    out, state = mamba_split_conv1d_scan_combined(**{**ours, "zxbcdt": tokens[:, :prompt]})
    ring = torch.zeros(2, DIM + 2 * D_BC, WIDTH, dtype=dtype, device=device())
    for t in range(prompt - WIDTH, prompt):
        ring[..., t % WIDTH] = tokens[:, t, DIM:-NHEADS]
    A_log = torch.log(-ours["A"].float())
    weights = [ours[k] for k in ("conv1d_weight", "conv1d_bias", "dt_bias")]
    outs = [out]
    for t in range(prompt, total):
        taken = torch.full((2,), t, device=device())
        y = mamba2_decode_step(tokens[:, t], ring, state, taken, *weights, A_log, ours["D"])
        outs.append(y[:, None])
    assert state.shape == (2, NHEADS, HEADDIM, D_STATE)
    plain, truth = naive_mixer(**ours), naive_mixer(**cast(ours, torch.float64))
    assert_close_by_rule(torch.cat(outs, 1), plain[0], truth[0])
    assert_close_by_rule(state, plain[1], truth[1], "state")


def test_errors_of_the_reference_do_not_grow_with_length() -> None:
    """Over 64 chunks of 32 tokens and over 1,000, of a state that lasts for a dozen of them."""
    found = []
    for chunks in (64, 1000):
        seqlen = 32 * chunks
        inputs = cast(
            scan_inputs(
                batch=1, seqlen=seqlen, nheads=1, ngroups=1, headdim=3, d_state=4, z=None,
                A=torch.tensor([-0.1], dtype=torch.float64),
            ),
            torch.float32,
        )  # fmt: skip
        out, last = mamba_chunk_scan_combined(**inputs)
        exact = cast(inputs, torch.float64)
        steps = torch.nn.functional.softplus(exact["dt"] + exact["dt_bias"])[0, :, 0]
        kept = torch.exp(steps * exact["A"]).tolist()
        taken = torch.einsum("t,tp,tn->tpn", steps, exact["x"][0, :, 0], exact["B"][0, :, 0])
        state, states = exact["initial_states"][0, 0].numpy(), []
        for factor, more in zip(kept, taken.numpy()):
            state = factor * state + more
            states.append(torch.from_numpy(state))
        y = (torch.stack(states) * exact["C"][0, :, 0, None]).sum(-1)
        y = y + exact["D"] * exact["x"][0, :, 0]
        found.append([errors(out[0, :, 0], y)[0], errors(last[0, 0], states[-1])[0]])
    for short, long in zip(*found):
        assert long <= 1.5 * short + 1e-7, found
