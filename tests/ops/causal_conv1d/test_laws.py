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


def numbers(lengths: list[int], first: int) -> torch.Tensor:
    """seq_idx of one row of sequences of these lengths, numbered from `first` on."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return (first + ids)[None].to(device())


def test_what_stands_in_another_sequence_does_not_leak(backend: str) -> None:
    x = randn(1, 6, 10)
    x[..., :4] = torch.inf
    x[..., 8:] = torch.nan
    seq_idx = torch.tensor([[0] * 4 + [1] * 4 + [-1] * 2], device=device())
    before = torch.full_like(x[..., :3], torch.nan)
    for state in (None, before):
        out, final = causal_conv1d_fn(x, randn(6, 4), randn(6, seed=1), seq_idx, state, True)
        alone = naive_conv(x[..., 4:8], randn(6, 4), randn(6, seed=1))
        torch.testing.assert_close(out[..., 4:8], alone, **exact)
        assert torch.equal(out[..., 8:], torch.zeros_like(x[..., 8:]))
        assert torch.equal(final, torch.zeros_like(final))
    _, final = causal_conv1d_fn(x[..., :6], randn(6, 4), None, seq_idx[:, :6], before, True)
    assert torch.equal(final, torch.cat([torch.zeros_like(x[..., :1]), x[..., 4:6]], 2))


def test_what_stands_in_another_sequence_has_no_gradient(backend: str) -> None:
    """inf in the gradient of one sequence's output or state reaches no input of another."""
    x, before = randn(1, 6, 9).requires_grad_(), randn(1, 6, 3, seed=1).requires_grad_()
    seq_idx = torch.tensor([[4] * 2 + [1] * 5 + [2] * 2], device=device())
    dout, dfinal = torch.ones_like(x), torch.full((1, 6, 3), torch.inf).to(x)
    dout[..., 2:] = torch.inf
    outs = causal_conv1d_fn(x, randn(6, 4), None, seq_idx, before, True)
    dx, dbefore = torch.autograd.grad(outs, [x, before], [dout, dfinal])
    assert dx[..., :2].isfinite().all()
    assert dbefore.isfinite().all()
    assert not dx[..., 2:].isfinite().any()


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
    first=st.integers(0, 9),
    state=st.booleans(),
)
def test_law_packed_is_each_alone(
    backend: str, lengths: list[int], width: int, block: int, first: int, state: bool
) -> None:
    """The initial state enters the first sequence, whatever its number; the final one is the last's."""
    x, weight, bias = randn(1, 3, sum(lengths)), randn(3, width, seed=1), randn(3, seed=2)
    before = randn(1, 3, width - 1, seed=3) if state else None
    with blocks_of(block):
        packed, final = causal_conv1d_fn(
            x, weight, bias, numbers(lengths, first), before, True, activation="silu"
        )
    alone, last = [], before
    for i, part in enumerate(x.split(lengths, dim=2)):
        last = before if i == 0 else None
        y, last = naive_conv(part, weight, bias, None, last, True, "silu")
        alone.append(y)
    torch.testing.assert_close(packed, torch.cat(alone, dim=2), **exact)
    assert torch.equal(final, last)


@law
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    cut=st.integers(0, 28),
    width=st.integers(1, 5),
    block=st.integers(1, 60),
)
def test_law_packed_split_anywhere(
    backend: str, lengths: list[int], cut: int, width: int, block: int
) -> None:
    """Chunked prefill of packed rows: a state is handed on where the cut is inside a sequence."""
    cut, seq_idx = min(cut, sum(lengths)), numbers(lengths, 3)
    x, weight = randn(1, 3, sum(lengths)), randn(3, width, seed=1)
    before = randn(1, 3, width - 1, seed=2)
    whole, final = naive_conv(x, weight, None, seq_idx, before, True)
    with blocks_of(block):
        first, middle = causal_conv1d_fn(x[..., :cut], weight, None, seq_idx[:, :cut], before, True)
        inside = cut in (0, sum(lengths)) or bool(seq_idx[0, cut - 1] == seq_idx[0, cut])
        second, last = causal_conv1d_fn(
            x[..., cut:], weight, None, seq_idx[:, cut:], middle if inside else None, True
        )
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole, **exact)
    assert torch.equal(last, final)
