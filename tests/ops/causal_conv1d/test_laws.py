"""Laws of causal_conv1d_fn: updates, splits and packed sequences are the same convolution."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import (
    device,
)
from tests.ops.causal_conv1d.common import blocks_of, naive_conv
from tests.ops.common import exact, law, randn
from tvkernels.causal_conv1d import causal_conv1d_fn, causal_conv1d_update


def test_what_stands_in_another_sequence_does_not_leak(backend: str) -> None:
    x = randn(1, 6, 10)
    x[..., :4] = torch.inf
    x[..., 8:] = torch.nan
    seq_idx = torch.tensor([[0] * 4 + [1] * 4 + [-1] * 2], device=device())
    out = causal_conv1d_fn(x, randn(6, 4), randn(6, seed=1), seq_idx)
    alone = naive_conv(x[..., 4:8], randn(6, 4), randn(6, seed=1))
    torch.testing.assert_close(out[..., 4:8], alone, **exact)
    assert torch.equal(out[..., 8:], torch.zeros_like(x[..., 8:]))


@law
@given(
    seqlen=st.integers(1, 12),
    width=st.integers(1, 5),
    extra=st.integers(0, 3),
    circular=st.booleans(),
    step=st.integers(1, 5),
    activation=st.sampled_from([None, "silu"]),
)
def test_law_fn_is_n_updates(
    backend: str,
    seqlen: int,
    width: int,
    extra: int,
    circular: bool,
    step: int,
    activation: str | None,
) -> None:
    x, weight, bias = randn(2, 3, seqlen), randn(3, width, seed=1), randn(3, seed=2)
    initial = randn(2, 3, width - 1, seed=3)
    whole, final = causal_conv1d_fn(x, weight, bias, None, initial, True, None, activation)
    state = x.new_zeros(2, 3, width - 1 + extra + circular)
    # slots before 0, taken around the circle, are the last ones
    state[..., state.shape[2] - (width - 1) :] = initial
    outs = []
    for t in range(0, seqlen, step):
        cache_seqlens = torch.tensor([t, t], device=device()) if circular else None
        outs.append(
            causal_conv1d_update(
                x[..., t : t + step], state, weight, bias, activation, cache_seqlens
            )
        )
    torch.testing.assert_close(torch.cat(outs, dim=2), whole, **exact)
    if not circular:
        assert torch.equal(state[..., state.shape[2] - (width - 1) :], final)


@law
@given(
    seqlen=st.integers(1, 20),
    cut=st.integers(0, 20),
    width=st.integers(1, 6),
    block=st.integers(1, 40),
)
def test_law_split_anywhere(backend: str, seqlen: int, cut: int, width: int, block: int) -> None:
    cut = min(cut, seqlen)
    x, weight = randn(2, 3, seqlen), randn(3, width, seed=1)
    initial = randn(2, 3, width - 1, seed=2)
    whole, final = naive_conv(x, weight, None, None, initial, True)
    with blocks_of(block):
        first, middle = causal_conv1d_fn(x[..., :cut], weight, None, None, initial, True)
        second, last = causal_conv1d_fn(x[..., cut:], weight, None, None, middle, True)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole, **exact)
    assert torch.equal(last, final)


@law
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    width=st.integers(1, 5),
    block=st.integers(1, 60),
)
def test_law_packed_is_each_alone(backend: str, lengths: list[int], width: int, block: int) -> None:
    x, weight, bias = randn(1, 3, sum(lengths)), randn(3, width, seed=1), randn(3, seed=2)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seq_idx = ids[None].to(device())
    with blocks_of(block):
        packed = causal_conv1d_fn(x, weight, bias, seq_idx, activation="silu")
    alone = [naive_conv(part, weight, bias, activation="silu") for part in x.split(lengths, dim=2)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=2), **exact)
