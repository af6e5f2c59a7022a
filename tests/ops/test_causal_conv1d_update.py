"""causal_conv1d_update and causal_conv1d_varlen_states against plain lists of past inputs."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.contract import check_contract
from tests.ops.test_causal_conv1d import (
    DATA,
    DTYPES,
    exact,
    law,
    naive_conv,
    project_and_split,
    randn,
)
from tvkernels.causal_conv1d import causal_conv1d_update, causal_conv1d_varlen_states
from tvkernels.core.backend import BackendUnavailable, use_backend


def test_golden_conv_state_after_decode_steps() -> None:
    golden = load_file(DATA / "F_mamba_mixer.safetensors")
    weight, bias = golden["weight.conv1d.weight"].squeeze(1), golden["weight.conv1d.bias"]
    state = golden["conv_state"].clone()
    steps = project_and_split(golden, golden["step_input"])
    for t in range(steps.shape[2]):
        causal_conv1d_update(steps[..., t], state, weight, bias, "silu")
    torch.testing.assert_close(state, golden["conv_state_after_steps"], atol=2e-5, rtol=0)


def naive_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: torch.Tensor | None = None,
    conv_state_indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One entry and one token at a time, on plain lists of past inputs; (out, new state)."""
    (batch, _, seqlen), state = x.shape, conv_state.clone()
    width, state_len = weight.shape[1], state.shape[2]
    out = torch.zeros_like(x)
    for b in range(batch):
        row = b if conv_state_indices is None else int(conv_state_indices[b])
        if row < 0:
            continue
        for t in range(seqlen):
            if cache_seqlens is None:
                past = [state[row, :, i].clone() for i in range(state_len)]
                state[row] = torch.stack([*past, x[b, :, t]][1:], dim=1)
            else:
                here = int(cache_seqlens[b]) + t
                slots = [(here - i) % state_len for i in range(width - 1, 0, -1)]
                past = [state[row, :, slot].clone() for slot in slots]
                state[row, :, here % state_len] = x[b, :, t]
            window = [*past, x[b, :, t]][len(past) + 1 - width :]
            whole = naive_conv(
                torch.stack(window, dim=1)[None], weight, bias, None, None, False, activation
            )
            out[b, :, t] = whole[0, :, -1]
    return out, state


def run_update(conv_state: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    state = conv_state.clone()
    return causal_conv1d_update(conv_state=state, **inputs), state


UPDATES = {
    "shift": {},
    "circular": {"cache_seqlens": torch.tensor([0, 9, 4], dtype=torch.int32)},
    "rows": {"conv_state_indices": torch.tensor([4, 0, 2], dtype=torch.int32)},
    "padding": {"conv_state_indices": torch.tensor([-1, 3, -1])},
    "padding beside row 0": {"conv_state_indices": torch.tensor([-1, 0, 2])},
    "only padding": {"conv_state_indices": torch.tensor([-1, -1, -1])},
    "circular rows": {
        "cache_seqlens": torch.tensor([3, 1, 700]),
        "conv_state_indices": torch.tensor([4, -1, 2]),
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("state_len", "seqlen"), [(3, 1), (4, 1), (7, 3), (3, 5)])
@pytest.mark.parametrize("variant", UPDATES)
def test_update_contract(variant: str, state_len: int, seqlen: int, dtype: torch.dtype) -> None:
    rows = 5 if "conv_state_indices" in UPDATES[variant] else 3
    inputs = {
        "x": randn(3, 6, seqlen, seed=1),
        "conv_state": randn(rows, 6, state_len, seed=2),
        "weight": randn(6, 4, seed=3),
        "bias": randn(6, seed=4),
        "activation": "silu",
        **UPDATES[variant],
    }
    check_contract(run_update, naive_update, inputs, dtype=dtype)


@pytest.mark.parametrize("circular", [False, True])
def test_update_layouts_and_two_dimensional_x(circular: bool) -> None:
    wide = randn(3, 20, seed=1)
    x, weight = wide[:, 4:10], randn(4, 6, seed=3).mT
    cache_seqlens = torch.tensor([2, 5, 8]) if circular else None
    expected, after = naive_update(
        x[..., None], randn(3, 6, 5, seed=2), weight, cache_seqlens=cache_seqlens
    )
    for state in (randn(3, 6, 5), randn(3, 5, 6).mT, randn(3, 12, 10)[:, ::2, ::2]):
        state.copy_(randn(3, 6, 5, seed=2))
        out = causal_conv1d_update(x, state, weight, cache_seqlens=cache_seqlens)
        assert out.shape == (3, 6)
        torch.testing.assert_close(out, expected[..., 0], **exact)
        assert torch.equal(state, after)


def test_update_is_for_inference() -> None:
    x, state = randn(2, 6).requires_grad_(), randn(2, 6, 3)
    out = causal_conv1d_update(x, state, randn(6, 4).requires_grad_())
    assert not out.requires_grad
    assert not state.requires_grad


def test_parameters_can_be_read_by_name() -> None:
    names = "x conv_state weight bias activation cache_seqlens conv_state_indices"
    assert list(inspect.signature(causal_conv1d_update).parameters) == names.split()


@law
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    state_len=st.integers(1, 5),
    index_dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_law_varlen_states_are_each_alone(
    lengths: list[int], state_len: int, index_dtype: torch.dtype
) -> None:
    x = randn(sum(lengths), 3)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=index_dtype)
    states = causal_conv1d_varlen_states(x, cu_seqlens, state_len)
    assert states.shape == (len(lengths), 3, state_len)
    for state, part in zip(states, x.split(lengths)):
        padded = torch.cat([torch.zeros(state_len, 3, dtype=x.dtype), part])
        assert torch.equal(state, padded[-state_len:].T)


def test_varlen_states_of_a_slice_with_nan_beside_it() -> None:
    wide = randn(9, 12)
    wide[:4] = torch.nan
    x = wide[:, 3:9].bfloat16()
    states = causal_conv1d_varlen_states(x, torch.tensor([0, 4, 6, 9]), 3)
    assert torch.equal(states[1], torch.cat([torch.zeros(1, 6), x[4:6].float()]).T.bfloat16())
    assert torch.equal(states[2], x[6:9].T)
    assert states.mT.is_contiguous()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_in_one_graph(backend: str) -> None:
    torch._dynamo.reset()

    def decode(x: torch.Tensor, weight: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        causal_conv1d_update(x, state, weight, cache_seqlens=torch.tensor([1, 2]))
        causal_conv1d_update(x, state, weight, conv_state_indices=torch.tensor([1, -1]))
        varlen = causal_conv1d_varlen_states(x, torch.tensor([0, 1, 2]), 3)
        return causal_conv1d_update(x, state, weight) + varlen.sum(-1)

    x, weight = randn(2, 6).float(), randn(6, 4, seed=1).float()
    state = randn(2, 6, 3).float()
    same = state.clone()
    expected_step = decode(x, weight, state)
    got_step = torch.compile(decode, fullgraph=True, backend=backend)(x, weight, same)
    torch.testing.assert_close(got_step, expected_step)
    torch.testing.assert_close(same, state)


def test_meta_tensors() -> None:
    x = torch.empty(2, 6, dtype=torch.bfloat16, device="meta")
    weight, state = (
        torch.empty(6, 4, device="meta"),
        torch.empty(2, 6, 3, dtype=x.dtype, device="meta"),
    )
    rows = torch.zeros(2, dtype=torch.int32, device="meta")
    step = causal_conv1d_update(x, state, weight, None, None, rows, rows)
    assert (step.shape, step.dtype) == ((2, 6), x.dtype)
    assert causal_conv1d_varlen_states(x, rows, 3).shape == (1, 6, 3)


X, W, S = torch.zeros(2, 8, 5), torch.zeros(8, 4), torch.zeros(2, 8, 3)
IDS = torch.zeros(2, 5, dtype=torch.int32)
ROWS = torch.zeros(2, dtype=torch.int32)
META = torch.zeros(2, 8, 3, device="meta")
UPDATE_ERRORS = [
    ({"x": X[..., None]}, r"update: x must be \(batch, dim\) or \(batch, dim, seqlen\)"),
    ({"weight": W[:4]}, r"causal_conv1d_update: weight must be \(dim, width\) = \(8, any\)"),
    ({"activation": "gelu"}, "activation must be None, 'silu' or 'swish', got 'gelu'"),
    ({"conv_state": S[:1]}, r"conv_state must be \(batch, dim, state_len\) = \(2, 8, any\)"),
    ({"conv_state": S.half()}, "conv_state must be of dtype float32, got float16"),
    ({"conv_state": S[..., :2]}, "conv_state must have state_len of at least width - 1 = 3, got 2"),
    ({"conv_state": META}, r"conv_state must lie on the device of x \(cpu\), got meta"),
    ({"cache_seqlens": ROWS[:1]}, r"cache_seqlens must be \(batch,\) = \(2\), got shape \(1,\)"),
    ({"cache_seqlens": S[0, :2, 0]}, "cache_seqlens must be of dtype int32, int64"),
    ({"conv_state_indices": ROWS[:1]}, r"conv_state_indices must be \(batch,\) = \(2\)"),
    ({"conv_state_indices": S[0, :2, 0]}, "conv_state_indices must be of dtype int32, int64"),
]
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


@pytest.mark.parametrize(("changes", "sentence"), UPDATE_ERRORS)
def test_update_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        causal_conv1d_update(**{"x": X, "conv_state": S.clone(), "weight": W, **changes})


@pytest.mark.parametrize(("changes", "sentence"), VARLEN_ERRORS)
def test_varlen_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        causal_conv1d_varlen_states(**{"x": X[0], "cu_seqlens": ROWS, "state_len": 3, **changes})


@pytest.mark.parametrize(
    "call",
    [
        lambda: causal_conv1d_update(X, S.clone(), W),
        lambda: causal_conv1d_varlen_states(X[0], ROWS, 3),
    ],
)
def test_triton_is_not_built(call: Any) -> None:
    with use_backend("triton"), pytest.raises(BackendUnavailable, match="causal_conv1d: it has no"):
        call()
