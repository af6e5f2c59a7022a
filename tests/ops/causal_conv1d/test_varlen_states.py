"""causal_conv1d_varlen_states against each sequence alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import (
    device,
)
from tests.interpreter import lazily
from tests.ops.causal_conv1d.common import FAR, ROWS, X
from tests.ops.common import law, randn
from tvkernels.causal_conv1d import causal_conv1d_varlen_states


@law
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    state_len=st.integers(1, 5),
    index_dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_law_varlen_states_are_each_alone(
    backend: str, lengths: list[int], state_len: int, index_dtype: torch.dtype
) -> None:
    x = randn(sum(lengths), 3).requires_grad_()
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    cu_seqlens = torch.tensor(offsets, dtype=index_dtype, device=device())
    states = causal_conv1d_varlen_states(x, cu_seqlens, state_len)
    assert states.shape == (len(lengths), 3, state_len)
    for state, part in zip(states, x.split(lengths)):
        padded = torch.cat([x.new_zeros(state_len, 3), part])
        assert torch.equal(state, padded[-state_len:].T)
    if not len(x):
        return
    states.backward(2 * states.detach())
    read = [
        t >= end - state_len for end, n in zip(offsets[1:], lengths) for t in range(end - n, end)
    ]
    kept = torch.tensor(read, device=device()).reshape(-1, 1)
    assert torch.equal(x.grad, 2 * x.detach() * kept)


def test_varlen_states_of_more_channels_than_one_program_takes(backend: str) -> None:
    x, cu_seqlens = randn(9, 300), torch.tensor([0, 4, 6, 9], device=device())
    states = causal_conv1d_varlen_states(x, cu_seqlens, 2)
    assert torch.equal(states, torch.stack([x[2:4].T, x[4:6].T, x[7:9].T]))


def test_varlen_states_of_a_slice_with_nan_beside_it(backend: str) -> None:
    wide = randn(9, 12)
    wide[:4] = torch.nan
    x = wide[:, 3:9].bfloat16()
    states = causal_conv1d_varlen_states(x, torch.tensor([0, 4, 6, 9], device=device()), 3)
    assert torch.equal(states[1], torch.cat([x.new_zeros(1, 6), x[4:6]]).T)
    assert torch.equal(states[2], x[6:9].T)
    assert states.mT.is_contiguous()


def test_varlen_offsets_past_32_bits(backend: str) -> None:
    near = randn(3, 3).bfloat16()
    for strides in ((FAR, 1), (1, FAR)):
        x = lazily((3, 3), strides, torch.bfloat16, device()).copy_(near)
        states = causal_conv1d_varlen_states(x, torch.tensor([0, 3], device=device()), 3)
        assert torch.equal(states[0], near.T)


IDS = torch.zeros(2, 5, dtype=torch.int32)
VARLEN_ERRORS = [
    ({"x": X}, r"varlen_states: x must be \(total_tokens, dim\), got shape"),
    ({"x": X[0].int()}, "x must be of dtype .*, got int32"),
    ({"cu_seqlens": IDS}, r"cu_seqlens must be \(n_seqs \+ 1,\), got shape \(2, 5\)"),
    ({"cu_seqlens": ROWS[:0]}, r"cu_seqlens must rise from 0 to at most 8 .*, got \[\]"),
    ({"cu_seqlens": ROWS.float()}, "cu_seqlens must be of dtype int32, int64, got float32"),
    ({"cu_seqlens": ROWS.to("meta")}, r"cu_seqlens must lie on the device of x \(cpu\), got meta"),
    ({"cu_seqlens": ROWS + 2}, r"cu_seqlens must rise from 0 to at most 8 .*, got \[2, 2\]"),
    ({"cu_seqlens": torch.tensor([0, 9])}, r"cu_seqlens must rise from 0 to at most 8 .*, 9\]"),
    ({"state_len": 0}, "state_len must be an int of at least 1, got 0"),
    ({"state_len": 2.0}, "state_len must be an int of at least 1, got 2.0"),
]


@pytest.mark.parametrize(("changes", "sentence"), VARLEN_ERRORS)
def test_varlen_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        causal_conv1d_varlen_states(**{"x": X[0], "cu_seqlens": ROWS, "state_len": 3, **changes})
