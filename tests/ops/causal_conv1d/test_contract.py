"""causal_conv1d_fn against a float64 tap loop, torch's conv1d and a recorded mixer."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.contract import (
    check_contract,
    device,
    on_device,
)
from tests.footprint import largest_tensor
from tests.ops.causal_conv1d.common import (
    LEAVES,
    SEQ_IDX,
    SHORT_ENDS,
    blocks_of,
    conv_inputs,
    leaves_of,
    naive_conv,
    project_and_split,
)
from tests.ops.common import DATA, DTYPES, randn
from tvkernels.causal_conv1d import causal_conv1d_fn


def ways(backend: str, elements: int) -> list[int]:
    """Block sizes to try: the reference has two code paths, the kernels have no such blocks."""
    return [1 << 19, elements] if backend == "reference" else [1 << 19]


STATES = {"initial_states": randn(2, 6, 3, seed=4), "return_final_states": True}
VARIANTS = {
    "model": {},
    "linear": {"activation": None, "bias": None},
    "swish": {"activation": "swish", "bias": None},
    "states": STATES,
    "final only": {"return_final_states": True},
    "packed": {"seq_idx": SEQ_IDX.int()},
    "packed int64": {"seq_idx": SEQ_IDX, "bias": None},
    "packed states": {"seq_idx": SEQ_IDX.int(), **STATES},
    "packed states, short ends": {"seq_idx": SHORT_ENDS, "activation": None, **STATES},
    "packed, final only": {"seq_idx": SEQ_IDX, "return_final_states": True},
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, dtype: torch.dtype) -> None:
    inputs = conv_inputs(**VARIANTS[variant])
    check_contract(causal_conv1d_fn, naive_conv, inputs, dtype=dtype, wrt=leaves_of(inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract_of_the_reference_by_blocks(variant: str, dtype: torch.dtype) -> None:
    with blocks_of(60):
        test_contract(variant, dtype)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
def test_any_width_also_longer_than_the_sequence_or_a_block(backend: str, width: int) -> None:
    for seqlen in (1, 2, 7):
        states = {"initial_states": randn(2, 6, width - 1), "return_final_states": True}
        inputs = conv_inputs(seqlen, width, **states)
        packed = inputs | {"seq_idx": torch.tensor([[4] * seqlen, [0] * (seqlen - 1) + [1]])}
        for block in ways(backend, 24):
            with blocks_of(block):
                check_contract(causal_conv1d_fn, naive_conv, inputs, wrt=LEAVES)
                check_contract(causal_conv1d_fn, naive_conv, packed, wrt=LEAVES)


LAYOUTS = {
    "contiguous": lambda: randn(2, 6, 23),
    "channel last": lambda: randn(2, 23, 6).mT,
    "slice of a projection": lambda: randn(2, 23, 20)[..., 5:11].mT,
    "slice of tokens": lambda: randn(2, 6, 40)[..., 8:31],
    "batch last": lambda: randn(6, 23, 2).permute(2, 0, 1),
    "strided": lambda: randn(2, 12, 46)[:, ::2, ::2],
    "one for the batch": lambda: randn(6, 23).expand(2, 6, 23),
    "one for all tokens": lambda: randn(2, 6, 1).expand(2, 6, 23),
    "one for all channels": lambda: randn(2, 1, 23).expand(2, 6, 23),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seq_idx", [None, SHORT_ENDS], ids=["whole", "packed"])
def test_layouts(backend: str, layout: str, seq_idx: torch.Tensor | None) -> None:
    inputs = conv_inputs(x=LAYOUTS[layout](), seq_idx=seq_idx, **STATES)
    odd = {"initial_states": randn(2, 3, 6).mT, "weight": randn(4, 6).mT}
    for block in ways(backend, 60):
        with blocks_of(block):
            for wrt in ((), ("x", "weight", "initial_states")):
                check_contract(causal_conv1d_fn, naive_conv, inputs, wrt=wrt)
            odd["bias"] = randn(1).expand(6)
            check_contract(causal_conv1d_fn, naive_conv, {**inputs, **odd})


def test_output_layout_is_the_inputs(backend: str) -> None:
    for block in ways(backend, 60):
        with blocks_of(block):
            for x in (randn(2, 6, 23), randn(2, 23, 6).mT):
                out, final = causal_conv1d_fn(x, randn(6, 4), return_final_states=True)
                assert out.stride() == x.stride()
                assert final.mT.is_contiguous()
            out = causal_conv1d_fn(randn(2, 23, 20)[..., :6].mT, randn(6, 4))
            assert out.mT.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_torch(backend: str, dtype: torch.dtype) -> None:
    x, weight, bias = randn(2, 48, 300).to(dtype), randn(48, 4).to(dtype), randn(48).to(dtype)
    wide = F.conv1d(x.double(), weight.double()[:, None], bias.double(), padding=3, groups=48)
    truth = F.silu(wide[..., :300])
    got = causal_conv1d_fn(x, weight, bias, activation="silu")
    torch.testing.assert_close(got, truth.to(dtype))


def test_final_states_do_not_share_the_inputs_memory(backend: str) -> None:
    x = randn(1, 6, 23)
    before = x.clone()
    _, final = causal_conv1d_fn(x, randn(6, 4), return_final_states=True)
    final.zero_()
    assert torch.equal(x, before)


def test_final_states_out_is_written_and_returned(backend: str) -> None:
    rooms = (torch.full((2, 6, 3), torch.nan), torch.full((2, 3, 9), torch.nan).mT[:, 1:7])
    for room in on_device(rooms):
        x = randn(2, 6, 23).float()
        _, final = causal_conv1d_fn(x, randn(6, 4), return_final_states=True, final_states_out=room)
        assert final is room
        assert torch.equal(room, x[..., -3:])


def test_weight_in_float32_beside_a_16_bit_input(backend: str) -> None:
    inputs = conv_inputs()
    x, weight, bias = inputs["x"].bfloat16(), inputs["weight"].float(), inputs["bias"].float()
    out = causal_conv1d_fn(x, weight, bias)
    assert torch.equal(out, naive_conv(x.double(), weight.double(), bias.double()).bfloat16())


def test_golden_mixer_convolution(backend: str) -> None:
    golden = on_device(load_file(DATA / "mamba_mixer.safetensors"))
    xbc = project_and_split(golden, golden["input"])
    weight, bias = golden["weight.conv1d.weight"].squeeze(1), golden["weight.conv1d.bias"]
    parts = [golden[f"conv_activated_{name}"].flatten(-2) for name in "xBC"]
    options = {"return_final_states": True, "activation": "silu"}
    for block in ways(backend, 5000):
        with blocks_of(block):
            out, final = causal_conv1d_fn(xbc, weight, bias, **options)
        torch.testing.assert_close(out.mT, torch.cat(parts, dim=-1), atol=2e-5, rtol=0)
        torch.testing.assert_close(final, golden["conv_state"][..., 1:], atol=2e-5, rtol=0)


def test_parameters_can_be_read_by_name() -> None:
    names = "x weight bias seq_idx initial_states return_final_states final_states_out activation"
    assert list(inspect.signature(causal_conv1d_fn).parameters) == names.split()


def test_memory_is_linear_in_length() -> None:
    def forward_and_backward(seqlen: int) -> int:
        x = randn(1, seqlen, 20)[..., :8].mT.float().requires_grad_()
        weight = randn(8, 4).float().requires_grad_()
        return largest_tensor(
            lambda: causal_conv1d_fn(x, weight, activation="silu").square().sum().backward()
        )

    with blocks_of(256):
        assert forward_and_backward(500) == 500 * 8
        assert forward_and_backward(4000) == 4000 * 8


@pytest.mark.parametrize("shape", [(0, 6, 7), (2, 6, 0), (2, 0, 7)])
@pytest.mark.parametrize("packed", [False, True])
def test_nothing_to_do(backend: str, packed: bool, shape: tuple[int, int, int]) -> None:
    """Without tokens the final states are the initial ones, and so are their gradients."""
    before = randn(shape[0], shape[1], 3).requires_grad_()
    x, weight = randn(*shape).requires_grad_(), randn(shape[1], 4).requires_grad_()
    ids = torch.zeros(shape[0], shape[2], dtype=torch.int32, device=device()) if packed else None
    out, final = causal_conv1d_fn(x, weight, None, ids, before, True, None, "silu")
    assert out.shape == shape
    (out.sum() + 2 * final.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    if shape[2] == 0:
        assert torch.equal(final, before)
        assert torch.equal(before.grad, torch.full_like(before, 2.0))
