"""causal_conv1d_update against plain lists of past inputs; operators of both state functions."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    check_capture,
    check_contract,
    compilers,
    device,
    on_device,
)
from tests.interpreter import lazily
from tests.ops.causal_conv1d.common import FAR, ROWS, S, W, X, naive_conv, project_and_split
from tests.ops.common import DATA, DTYPES, exact, randn
from tvkernels import use_backend
from tvkernels.causal_conv1d import causal_conv1d_update, causal_conv1d_varlen_states
from tvkernels.causal_conv1d.op import _update, _varlen_bwd, _varlen_fwd


def test_golden_conv_state_after_decode_steps(backend: str) -> None:
    golden = on_device(load_file(DATA / "mamba_mixer.safetensors"))
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
                state[row] = torch.stack([*past, x[b, :, t]], dim=1)[:, 1:]
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


@pytest.mark.usefixtures("backend")
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
def test_update_layouts_and_two_dimensional_x(backend: str, circular: bool) -> None:
    wide = randn(3, 20, seed=1)
    x, weight = wide[:, 4:10], randn(4, 6, seed=3).mT
    cache_seqlens = torch.tensor([2, 5, 8], device=device()) if circular else None
    expected, after = naive_update(
        x[..., None], randn(3, 6, 5, seed=2), weight, cache_seqlens=cache_seqlens
    )
    for state in (randn(3, 6, 5), randn(3, 5, 6).mT, randn(3, 12, 10)[:, ::2, ::2]):
        state.copy_(randn(3, 6, 5, seed=2))
        out = causal_conv1d_update(x, state, weight, cache_seqlens=cache_seqlens)
        assert out.shape == (3, 6)
        torch.testing.assert_close(out, expected[..., 0], **exact)
        assert torch.equal(state, after)


@pytest.mark.parametrize(("state_len", "seqlen"), [(3, 1), (300, 2)])
@pytest.mark.parametrize("variant", ["shift", "circular rows"])
def test_update_by_several_programs(
    backend: str, variant: str, state_len: int, seqlen: int
) -> None:
    """More channels than one program takes, and a state so long that it takes fewer of them."""
    inputs = {
        "x": randn(3, 150, seqlen, seed=1),
        "conv_state": randn(5 if "rows" in variant else 3, 150, state_len, seed=2),
        "weight": randn(150, 3, seed=3),
        **UPDATES[variant],
    }
    check_contract(run_update, naive_update, inputs)


@pytest.mark.parametrize("width", [1, 2, 7])
def test_update_of_any_width(backend: str, width: int) -> None:
    for cache_seqlens in (None, torch.tensor([2, 11])):
        inputs = {
            "x": randn(2, 6, 3, seed=1),
            "conv_state": randn(2, 6, width - 1, seed=2),
            "weight": randn(6, width, seed=3),
            "cache_seqlens": cache_seqlens if width > 1 else None,
        }
        check_contract(run_update, naive_update, inputs)


def test_update_of_nothing(backend: str) -> None:
    state = randn(2, 6, 3)
    before = state.clone()
    for x in (randn(2, 6, 0), randn(0, 6, 1)):
        rows = torch.zeros(len(x), dtype=torch.int32, device=device())
        out = causal_conv1d_update(x, state, randn(6, 4), conv_state_indices=rows)
        assert out.shape == x.shape
        assert torch.equal(state, before)


def test_update_is_for_inference(backend: str) -> None:
    x, state = randn(2, 6).requires_grad_(), randn(2, 6, 3)
    out = causal_conv1d_update(x, state, randn(6, 4).requires_grad_())
    assert not out.requires_grad
    assert not state.requires_grad


def test_parameters_can_be_read_by_name() -> None:
    names = "x conv_state weight bias activation cache_seqlens conv_state_indices"
    assert list(inspect.signature(causal_conv1d_update).parameters) == names.split()


@pytest.mark.usefixtures("backend")
def test_compiles_in_one_graph() -> None:
    turns, rows, offsets = on_device(
        (torch.tensor([1, 2]), torch.tensor([1, -1]), torch.tensor([0, 1, 2]))
    )

    def decode(x: torch.Tensor, weight: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        causal_conv1d_update(x, state, weight, cache_seqlens=turns)
        causal_conv1d_update(x, state, weight, conv_state_indices=rows)
        varlen = causal_conv1d_varlen_states(x, offsets, 3)
        return causal_conv1d_update(x, state, weight) + varlen.sum(-1)

    x, weight = randn(2, 6).float(), randn(6, 4, seed=1).float()
    state = randn(2, 6, 3).float()
    start = state.clone()
    expected_step = decode(x, weight, state)
    for compiler in compilers("eager"):
        torch._dynamo.reset()
        mine = start.clone()
        got_step = torch.compile(decode, fullgraph=True, backend=compiler)(x, weight, mine)
        torch.testing.assert_close(got_step, expected_step)
        torch.testing.assert_close(mine, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(backend: str, dtype: torch.dtype) -> None:
    inputs = {"x": randn(3, 6, 2), "conv_state": randn(3, 6, 4), "weight": randn(6, 4)}
    inputs = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    for got, again in zip(run_update(**inputs), run_update(**inputs)):
        assert torch.equal(got, again)


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    with use_backend("triton"):
        x, state, weight = randn(3, 6).bfloat16(), randn(3, 6, 4).bfloat16(), randn(6, 4)
        start, offsets = state.clone(), torch.tensor([0, 1, 3], device=device())

        def step() -> tuple[torch.Tensor, ...]:
            state.copy_(start)
            out = causal_conv1d_update(x, state, weight, None, "silu")
            return out, state.clone(), causal_conv1d_varlen_states(x, offsets, 3)

        check_capture(step)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_operators_are_sound() -> None:
    with use_backend("triton"):
        x, state, weight = randn(2, 6, 3), randn(2, 6, 4), randn(6, 4)
        index = torch.tensor([1, 0], device=device())
        for bias, turns, rows in ((None, None, None), (randn(6), index, index)):
            torch.library.opcheck(_update.op, (x, state, weight, bias, True, turns, rows))
        offsets = torch.tensor([0, 1, 5], device=device())
        torch.library.opcheck(_varlen_fwd.op, (randn(5, 6), offsets, 3))
        torch.library.opcheck(_varlen_bwd.op, (randn(2, 6, 3), offsets, 5))


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("strides", [(9, 3, FAR), (9, FAR, 1), (FAR, 3, 1)], ids=str)
@pytest.mark.parametrize("which", ["x", "conv_state"])
def test_offsets_past_32_bits(
    backend: str, which: str, strides: tuple[int, int, int], circular: bool
) -> None:
    """The stride itself fits 32 bits, so that only its product with the index does not."""
    tensors = {n: randn(3, 3, 3, seed=i).bfloat16() for i, n in enumerate(("x", "conv_state"))}
    turns = torch.tensor([2, 5, 0], device=device()) if circular else None
    distant = lazily((3, 3, 3), strides, torch.bfloat16, device()).copy_(tensors[which])
    results = []
    for inputs in ({**tensors, which: distant}, tensors):
        # written in place
        inputs["conv_state"].copy_(randn(3, 3, 3, seed=1))
        out = causal_conv1d_update(**inputs, weight=randn(3, 4), cache_seqlens=turns)
        results.append((out, inputs["conv_state"].clone(), inputs["x"]))
    for got, near in zip(*results):
        assert_alike(got, near, rounding=COMPILED)


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
    ({"conv_state_indices": ROWS + 2}, r"conv_state_indices must be below 2 .*, got \[2, 2\]"),
    ({"conv_state_indices": S[0, :2, 0]}, "conv_state_indices must be of dtype int32, int64"),
]


@pytest.mark.parametrize(("changes", "sentence"), UPDATE_ERRORS)
def test_update_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        causal_conv1d_update(**{"x": X, "conv_state": S.clone(), "weight": W, **changes})
