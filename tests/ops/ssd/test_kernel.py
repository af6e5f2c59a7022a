"""The scan's forward kernels: configurations, segments, offsets, operators."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch

from tests.contract import (
    COMPILED,
    TRITON,
    as_tuple,
    assert_alike,
    assert_close_by_rule,
    cast,
    check_capture,
    device,
    errors,
    every_config,
    on_device,
)
from tests.interpreter import fenced_empty, lazily, poisoned_empty
from tests.ops.ssd.common import GRADS, RETURNING, VARIANTS, bare_inputs, packed, scan_inputs
from tvkernels import use_backend
from tvkernels.ssd import mamba_chunk_scan_combined, op
from tvkernels.ssd.reference import mamba_chunk_scan_combined_ref

if TRITON:
    from tvkernels.core.tune import forced
    from tvkernels.ssd import kernel
pytestmark = [pytest.mark.triton, pytest.mark.skipif(not TRITON, reason="needs Triton")]
Tensors = dict[str, Any]


@pytest.fixture(autouse=True)
def _on_triton():
    with use_backend("triton"), poisoned_empty():
        yield


@pytest.fixture
def short_segments(monkeypatch):
    """Several segments of several subsegments, at lengths that the interpreter bears."""
    for name, value in {"PROGRAMS": 12, "SEGMENT": 128, "SUBSEGMENT": 128}.items():
        monkeypatch.setattr(kernel, name, value)


def check_values(inputs: Tensors, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Compare by the 2x rule with the reference in float64 (tests hold that one to a loop). At 16 bit
    the plain form rounds the state updates to 16 bit, as a matrix unit's operands are: one more
    rounding of x."""
    ours = cast(on_device(inputs), dtype)
    got = as_tuple(mamba_chunk_scan_combined(**ours))
    with use_backend("reference"), torch.no_grad():
        truth = as_tuple(mamba_chunk_scan_combined_ref(**cast(ours, torch.float64)))
        once_more = dict(ours)
        if dtype.itemsize == 2:
            noise = 1 + (torch.rand_like(ours["x"].float()) - 0.5) * torch.finfo(dtype).eps
            once_more["x"] = ours["x"].float() * noise
        plain = as_tuple(mamba_chunk_scan_combined_ref(**once_more))
    for g, p, t in zip(got, plain, truth):
        assert_close_by_rule(g, p.to(g.dtype), t)
    return got


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "config",
    every_config(
        "tvkernels.ssd.chunk_scan_kernel:chunk_scan_kernel",
        "tvkernels.ssd.chunk_state_kernel:chunk_state_kernel",
    ),
    ids=str,
)
def test_every_configuration(config, dtype: torch.dtype, short_segments) -> None:
    inputs = scan_inputs(
        batch=1, seqlen=300, nheads=2, headdim=20, cu_seqlens=torch.tensor([0, 70, 300]),
        return_varlen_states=True,
    )  # fmt: skip
    with forced(config):
        check_values(inputs, dtype)


@pytest.mark.parametrize(
    "headdim", [1, 16, 40, 48, 64, 80, 96, 112, 128, 140, 144, 176, 208, 224, 240, 256]
)
def test_head_dimensions(headdim: int) -> None:
    check_values(scan_inputs(batch=1, nheads=2, headdim=headdim, d_state=16))


def test_a_head_in_two_launches(short_segments) -> None:
    inputs = scan_inputs(
        batch=1, seqlen=300, nheads=2, headdim=144, d_state=16, D=torch.randn(2, 144).double(),
        cu_seqlens=torch.tensor([0, 70, 300]), return_varlen_states=True,
    )  # fmt: skip
    assert len(kernel._launches(144, 128)) == 2
    check_values(inputs)


@pytest.mark.parametrize("d_state", [1, 16, 24, 64, 80, 128, 200, 256])
def test_state_sizes(d_state: int) -> None:
    check_values(scan_inputs(batch=1, nheads=2, headdim=80, d_state=d_state))


@pytest.mark.parametrize(("nheads", "ngroups"), [(3, 1), (3, 3), (6, 3), (7, 7)])
def test_odd_numbers_of_groups(nheads: int, ngroups: int) -> None:
    check_values(scan_inputs(batch=1, nheads=nheads, ngroups=ngroups, headdim=16, d_state=16))


def test_launches_cover_a_head_with_the_fewest_programs_and_pad_no_multiple_of_16() -> None:
    for most in (128, 64, 32):
        for headdim in range(1, 257):
            launches = kernel._launches(headdim, most)
            covered = 0
            for first, widths, blocks in launches:
                assert first == covered
                assert 0 < sum(widths) <= most
                covered += blocks * sum(widths)
            assert sum(blocks for *_, blocks in launches) == -(-headdim // most)
            assert covered == headdim if headdim % 16 == 0 else len(launches) == 1
            assert 0 <= covered - headdim < 16 * launches[0][2]
    assert kernel._launches(80, 128) == [(0, (64, 16), 1)]
    assert kernel._launches(112, 128) == [(0, (64, 32, 16), 1)]
    assert kernel._launches(144, 128) == [(0, (64, 16), 1), (80, (64,), 1)]


@pytest.mark.parametrize("cut", [(128, 2**31, 2), (512, 2048, 256), (512, 8192, 64)])
def test_cuts_cover_every_sequence_once(cut, monkeypatch) -> None:
    for name, value in zip(("SEGMENT", "SUBSEGMENT", "PROGRAMS"), cut):
        monkeypatch.setattr(kernel, name, value)
    for seqlen in (0, 1, 127, 128, 1023, 1024, 5000, 160_000, 160_001):
        for rows in (1, 3, 128, 1024):
            segments, segment_len, subsegments, subsegment_len = kernel._cut(rows, seqlen)
            assert segment_len == subsegments * subsegment_len
            assert (segments - 1) * segment_len < max(1, seqlen) <= segments * segment_len
            longest = max(kernel.SUBSEGMENT, kernel.ROUND) + kernel.ROUND
            assert segments == 1 or subsegment_len <= longest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "variant", ["everything", "seq_idx", "seq_idx returns", "varlen", "no init"]
)
def test_segments(variant: str, dtype: torch.dtype, short_segments) -> None:
    changes: Tensors = {"batch": 2}
    seqlen = 700
    if variant.startswith("seq_idx"):
        numbers = torch.arange(seqlen) // 300 if variant == "seq_idx" else RETURNING[0].repeat(10)
        changes["seq_idx"] = numbers[None].expand(2, seqlen)
    elif variant == "varlen":
        seq_idx, cu_seqlens = packed([128, 0, 300, 272])
        changes = {"batch": 1, "seq_idx": seq_idx, "cu_seqlens": cu_seqlens}
        changes["return_varlen_states"] = True
    elif variant == "no init":
        changes["initial_states"] = None
    inputs = scan_inputs(seqlen=seqlen, nheads=2, headdim=20, ngroups=1, **changes)
    # one head's state lasts for many subsegments, the other's for less than one
    inputs["A"] = torch.tensor([-0.01, -12.0], dtype=torch.float64)
    segments, *_ = kernel._cut(2 * len(inputs["x"]), seqlen)
    assert segments > 2
    check_values(inputs, dtype)


@pytest.mark.parametrize("numbered", [False, True])
def test_what_is_forgotten_is_not_read(numbered: bool, monkeypatch) -> None:
    """Tokens before a decay of 2^-126, or before a reset, are NaN, and the result does not change.

    That is so before not_finite_kernel, which carries the NaN on as the recurrence does.
    """
    monkeypatch.setattr(kernel, "PROGRAMS", 4)
    launches = defaultdict(lambda: lambda *arguments, **constants: None)
    monkeypatch.setattr(kernel, "not_finite_kernel", launches)
    inputs = bare_inputs(4096, batch=1, nheads=2, headdim=16, dt_softplus=False)
    inputs["dt"] = torch.full((1, 4096, 2), 0.3, dtype=torch.float64)
    inputs["A"] = torch.full((2,), -1e-6 if numbered else -8.0, dtype=torch.float64)
    if numbered:
        inputs["seq_idx"] = (torch.arange(4096) >= 1500).int()[None]
    inputs = cast(on_device(inputs), torch.float32)
    assert kernel._cut(2, 4096)[:2] == (2, 2048)
    args = [inputs.get(n) for n in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")]
    rest = (None, inputs.get("seq_idx"), None, False, (0.0, 1.0))
    clean, last, _ = kernel.scan_forward(*args, *rest)
    poisoned = inputs["x"].clone()
    poisoned[:, :1024] = torch.nan
    spoilt, last_too, _ = kernel.scan_forward(poisoned, *args[1:], *rest)
    assert torch.equal(clean[:, 2048:], spoilt[:, 2048:])
    assert torch.equal(last, last_too)
    assert len(launches) == 1


def test_mixed_dtypes() -> None:
    inputs = cast(scan_inputs(batch=1, headdim=20), torch.bfloat16)
    inputs.update({k: inputs[k].float() for k in ("A", "D", "dt", "initial_states", "dt_bias")})
    for wide in ((), ("B",), ("B", "C")):
        mixed = {**inputs, **{k: inputs[k].float() for k in wide}}
        out, final = mamba_chunk_scan_combined(**mixed)
        with use_backend("reference"):
            truth = mamba_chunk_scan_combined_ref(**cast(mixed, torch.float64))
        # the product is in float32 if one operand is
        assert errors(final, truth[1])[0] < (1e-6 if wide else 4e-3)
        assert errors(out, truth[0])[0] < 4e-3


def test_negative_step_sizes() -> None:
    inputs = scan_inputs(dt_softplus=False, dt_limit=(-0.1, 0.2))
    inputs["A"] = inputs["A"] / 8
    check_values(inputs)
    check_values(inputs, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_errors_of_the_state_do_not_grow_with_length(dtype: torch.dtype, monkeypatch) -> None:
    """The error after 1,000 chunks is about that after 64: one segment, a state that decays over a dozen."""
    monkeypatch.setattr(kernel, "PROGRAMS", 1)
    found = []
    for chunks in (64, 1000):
        inputs = bare_inputs(64 * chunks, batch=1, nheads=1, ngroups=1, headdim=16, d_state=16)
        inputs.update(dt=inputs["dt"] - 3, A=torch.tensor([-0.1], dtype=torch.float64))
        ours = cast(on_device(inputs), dtype)
        with use_backend("reference"):
            truth = mamba_chunk_scan_combined_ref(**cast(ours, torch.float64))
        found.append([errors(g, t)[0] for g, t in zip(mamba_chunk_scan_combined(**ours), truth)])
    floor = 1e-6 if dtype == torch.float32 else 1e-3
    for short, long in zip(*found):
        assert long <= 1.5 * short + floor, found


@pytest.mark.parametrize("variant", ["everything", "varlen"])
def test_two_runs_are_bitwise_equal(variant: str, short_segments) -> None:
    inputs = cast(on_device(VARIANTS[variant]()), torch.float32)
    runs = [as_tuple(mamba_chunk_scan_combined(**inputs)) for _ in range(2)]
    for a, b in zip(*runs):
        assert torch.equal(a, b)


@pytest.mark.parametrize("variant", ["everything", "varlen", "nothing else"])
def test_opcheck(variant: str) -> None:
    inputs = cast(on_device(VARIANTS[variant]()), torch.float32)
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states", "seq_idx")
    tensors = [inputs.get(name) for name in (*names, "cu_seqlens")]
    how = (inputs["dt_softplus"], 0.0, float("inf"))
    torch.library.opcheck(op._scan_fwd.op, (*tensors, *how))
    cotangents = [torch.randn_like(out) for out in op._scan_fwd(*tensors, *how)]
    torch.library.opcheck(op._scan_bwd.op, (*cotangents, *tensors, *how))


FAR = 3 * 2**29
FARTHEST = {
    "x": 1, "dt": 1, "B": 1, "C": 1, "z": 1, "initial_states": 2, "seq_idx": 1, "D": 1, "A": 0,
    "dt_bias": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", FARTHEST)
def test_offsets_past_two_to_the_31(name: str) -> None:
    """One stride of a token, channel or head fits int32, but twice the stride does not."""
    inputs = cast(
        scan_inputs(batch=1, seqlen=3, nheads=3, headdim=3, ngroups=1, D=torch.ones(3, 3).double()),
        torch.bfloat16,
    )
    inputs["seq_idx"] = torch.tensor([[0, 0, 1]], dtype=torch.int32)
    expected = as_tuple(mamba_chunk_scan_combined(**on_device(inputs)))
    near = inputs[name]
    strides = list(near.contiguous().stride())
    strides[FARTHEST[name]] = FAR
    far = lazily(tuple(near.shape), tuple(strides), near.dtype, device())
    far.copy_(near)
    got = as_tuple(mamba_chunk_scan_combined(**on_device({**inputs, name: far})))
    for a, b in zip(got, expected):
        assert_alike(a, b, rounding=COMPILED)


@pytest.mark.parametrize("name", ["x", "B", "C", "z", "dt"])
def test_tokens_past_two_to_the_31(name: str, short_segments) -> None:
    """A chunk starts past 2^31 elements although offsets within it fit 32 bits, and so does
    the part from which the second of two segments starts."""
    inputs = cast(scan_inputs(batch=1, seqlen=300, nheads=1, ngroups=1), torch.bfloat16)
    expected = as_tuple(mamba_chunk_scan_combined(**on_device(inputs)))
    near = inputs[name]
    strides = list(near.contiguous().stride())
    strides[1] = 2**24 - 64
    far = lazily(tuple(near.shape), tuple(strides), near.dtype, device())
    far.copy_(near)
    got = as_tuple(mamba_chunk_scan_combined(**on_device({**inputs, name: far})))
    for a, b in zip(got, expected):
        assert_alike(a, b, rounding=COMPILED)


@pytest.mark.parametrize("widths", [(72, 72), (300, 16), (16, 300)], ids=str)
def test_nothing_beside_a_tensor_is_touched(widths: tuple[int, int]) -> None:
    """Gate, ragged tiles and chunk, more channels or entries than a program takes."""
    headdim, d_state = widths
    inputs = cast(
        scan_inputs(batch=1, seqlen=71, nheads=2, headdim=headdim, d_state=d_state, ngroups=1),
        torch.float32,
    )
    want = as_tuple(mamba_chunk_scan_combined(**on_device(inputs)))
    with fenced_empty():
        apart = {
            name: torch.empty_like(value).copy_(value) if isinstance(value, torch.Tensor) else value
            for name, value in on_device(inputs).items()
        }
        got = as_tuple(mamba_chunk_scan_combined(**apart))
    for a, b in zip(got, want):
        assert torch.equal(a, b)


def test_a_channel_stride_of_more_than_256_channels() -> None:
    """32 bits hold the offsets of 256 channels here, not those of all."""
    inputs = cast(bare_inputs(seqlen=3, batch=1, nheads=1, headdim=300, ngroups=1), torch.float32)
    expected = as_tuple(mamba_chunk_scan_combined(**on_device(inputs)))
    far = lazily((1, 3, 1, 300), (1, 1, 8, 8_000_000), torch.float32, device())
    far.copy_(inputs["x"])
    got = as_tuple(mamba_chunk_scan_combined(**on_device({**inputs, "x": far})))
    for a, b in zip(got, expected):
        assert_alike(a, b, rounding=COMPILED)


@pytest.mark.parametrize("name", ["x", "B", "C", "z"])
def test_offsets_past_two_to_the_31_across_channels(name: str) -> None:
    """Channel-first tensors: a channel is a stride of the whole length from the next."""
    inputs = cast(
        scan_inputs(batch=1, seqlen=5, nheads=1, headdim=3, ngroups=1, d_state=3), torch.bfloat16
    )
    expected = as_tuple(mamba_chunk_scan_combined(**on_device(inputs)))
    shape = tuple(inputs[name].shape)
    far = lazily(shape, (1, 1, 8, FAR), torch.bfloat16, device())
    far.copy_(inputs[name])
    got = as_tuple(mamba_chunk_scan_combined(**on_device({**inputs, name: far})))
    for a, b in zip(got, expected):
        assert_alike(a, b, rounding=COMPILED)


@pytest.mark.skipif(not COMPILED, reason="needs a GPU")
def test_graph_capture() -> None:
    inputs = cast(on_device(VARIANTS["varlen"]()), torch.bfloat16)
    check_capture(lambda: mamba_chunk_scan_combined(**inputs))
    leaves = [inputs[name].requires_grad_() for name in GRADS]

    def train() -> tuple[torch.Tensor, ...]:
        outs = mamba_chunk_scan_combined(**inputs)
        return torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])

    check_capture(train)


def test_gradients_reach_every_input(short_segments) -> None:
    """Each gradient goes to its own input. Other tests check the values."""
    inputs = cast(on_device(scan_inputs(batch=1, seqlen=200, nheads=2)), torch.float32)
    leaves = {name: inputs[name].requires_grad_() for name in GRADS}
    out, final = mamba_chunk_scan_combined(**inputs)
    got = torch.autograd.grad(out.cos().sum() + final.cos().sum(), list(leaves.values()))
    with use_backend("reference"):
        out, final = mamba_chunk_scan_combined(**inputs)
        want = torch.autograd.grad(out.cos().sum() + final.cos().sum(), list(leaves.values()))
    for name, a, b in zip(GRADS, got, want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)
