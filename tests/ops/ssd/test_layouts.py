"""The Mamba-2 scan: strides, chunk lengths, memory, compilation, shapes on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.contract import (
    assert_close_by_rule,
    cast,
    compilers,
    device,
)
from tests.ops.ssd.common import (
    GRADS,
    VARIANTS,
    bare_inputs,
    both,
    check_scan,
    naive_scan,
    scan_inputs,
)
from tvkernels.ssd import chunked_reference, mamba_chunk_scan_combined
from tvkernels.ssd.reference import mamba_recurrence_ref


@both
def test_empty_sequence() -> None:
    inputs = scan_inputs(seqlen=0)
    for scan in (mamba_chunk_scan_combined, mamba_recurrence_ref):
        out, final = scan(**inputs)
        assert out.shape == (2, 0, 4, 5)
        assert torch.equal(final, inputs["initial_states"])
    cu_seqlens = torch.zeros(3, dtype=torch.int32, device=device())
    _, states = mamba_chunk_scan_combined(
        **bare_inputs(0, batch=1, return_final_states=False),
        cu_seqlens=cu_seqlens,
        return_varlen_states=True,
    )
    assert torch.equal(states, torch.zeros_like(states))
    assert states.shape == (2, 4, 5, 6)


@both
def test_result_types_and_layouts() -> None:
    inputs = VARIANTS["varlen"]()
    half = cast(inputs, torch.bfloat16)
    out, final, states = mamba_chunk_scan_combined(**half)
    assert out.dtype == states.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    assert out.is_contiguous()
    assert isinstance(
        mamba_chunk_scan_combined(**bare_inputs(4, return_final_states=False)), torch.Tensor
    )


@both
def test_views_and_expanded_inputs() -> None:
    inputs = scan_inputs(D=torch.tensor(0.5, dtype=torch.float64).expand(4, 5))
    plain = cast(inputs, torch.float32)
    plain["D"] = plain["D"].contiguous()
    joint = torch.cat([plain[k].flatten(2) for k in ("x", "B", "C", "dt")], -1)
    x, B, C, dt = joint.transpose(1, 2).contiguous().transpose(1, 2).split([20, 12, 12, 4], -1)
    views = {
        **plain,
        "x": x.unflatten(-1, (4, 5)),
        "B": B.unflatten(-1, (2, 6)),
        "C": C.unflatten(-1, (2, 6)),
        "dt": dt,
        "D": plain["D"][0, 0].expand(4, 5),
        "z": plain["z"].transpose(0, 1).contiguous().transpose(0, 1),
        "initial_states": plain["initial_states"].mT.contiguous().mT,
    }
    assert not views["x"].is_contiguous()
    for ours, truth in zip(mamba_chunk_scan_combined(**views), mamba_chunk_scan_combined(**plain)):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_contract_with_stride_0_inputs(backend: str) -> None:
    one = torch.tensor(-1.5, dtype=torch.float64)
    inputs = scan_inputs(
        A=one.expand(4), dt=one.expand(2, 70, 4), dt_bias=one.expand(4), D=one.expand(4, 5)
    )
    check_scan(backend, inputs)


@pytest.mark.parametrize(("chunk", "per_span"), [(1, 3), (7, 1), (70, 2), (128, 8)])
@pytest.mark.parametrize("variant", ["everything", "varlen", "varlen without seq_idx"])
def test_the_length_of_chunks_does_not_matter(
    variant: str, chunk: int, per_span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = VARIANTS[variant]()

    def run() -> tuple[torch.Tensor, ...]:
        leaves = {name: inputs[name].clone().requires_grad_() for name in GRADS}
        results = mamba_chunk_scan_combined(**{**inputs, **leaves})
        total = sum(out.cos().sum() for out in results)
        return (*results, *torch.autograd.grad(total, list(leaves.values())))

    expected = run()
    monkeypatch.setattr(chunked_reference, "CHUNK", chunk)
    monkeypatch.setattr(chunked_reference, "CHUNKS_PER_SPAN", per_span)
    for ours, truth in zip(run(), expected):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def peak_bytes(fn: Callable[[], Any]) -> int:
    """The most memory that is allocated at once while `fn()` runs, by the allocator's own log."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        fn()
    assert log.profiler is not None
    events = [e for e in log.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def test_memory_is_linear_and_mostly_the_result() -> None:
    def peaks(seqlen: int) -> tuple[int, int, int]:
        inputs = scan_inputs(batch=1, seqlen=seqlen, headdim=64, d_state=64, z=None)
        inputs = cast(inputs, torch.float32)
        with torch.no_grad():
            forward = peak_bytes(lambda: mamba_chunk_scan_combined(**inputs))
        leaves = {k: inputs[k].requires_grad_() for k in ("x", "dt", "A", "B", "C", "D")}

        def train() -> None:
            out, final = mamba_chunk_scan_combined(**{**inputs, **leaves})
            torch.autograd.backward([out, final], [torch.ones_like(out), final.detach()])

        return forward, peak_bytes(train), inputs["x"].nbytes

    small, middle, large = peaks(1024), peaks(2048), peaks(4096)
    for kind in (0, 1):
        assert abs(large[kind] - 3 * middle[kind] + 2 * small[kind]) < 0.02 * large[kind]
    x_bytes = large[2] - middle[2]
    # forward: the result; trained: also its cotangent, dx, dB and dC (half of x each here), and a
    # state of 64 numbers per channel every 256 tokens
    assert large[0] - middle[0] < 1.1 * x_bytes
    assert large[1] - middle[1] < 1.1 * (3 + 2 * 0.5 + 64 / 256) * x_bytes


@both
def test_compiles_to_one_graph() -> None:
    inputs = cast(VARIANTS["varlen"](), torch.float32)
    x = inputs["x"].requires_grad_()
    truth = mamba_chunk_scan_combined(**inputs)
    truth = (*truth, *torch.autograd.grad(truth[0].sum(), [x]))
    for compiler in compilers():
        torch._dynamo.reset()
        run = torch.compile(mamba_chunk_scan_combined, fullgraph=True, backend=compiler)
        ours = run(**inputs)
        for a, b in zip((*ours, *torch.autograd.grad(ours[0].sum(), [x])), truth):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@both
def test_shapes_on_the_meta_device() -> None:
    inputs = {
        k: v.to("meta") if isinstance(v, torch.Tensor) else v
        for k, v in VARIANTS["varlen without seq_idx"]().items()
    }
    out, final, states = mamba_chunk_scan_combined(**inputs)
    assert out.shape == (1, 70, 4, 5)
    assert final.shape == (1, 4, 5, 6)
    assert states.shape == (5, 4, 5, 6)


@both
def test_gradients_are_first_order_only() -> None:
    inputs = bare_inputs(8, return_final_states=False)
    inputs["x"].requires_grad_()
    (grad,) = torch.autograd.grad(
        mamba_chunk_scan_combined(**inputs).square().sum(), [inputs["x"]], create_graph=True
    )
    with pytest.raises(RuntimeError, match="only first order gradients, got a second derivative"):
        grad.sum().backward()


def test_rule_itself_is_sharp() -> None:
    """The tolerance is tight enough to fail a scan that skips the decay of one token."""
    inputs = bare_inputs(40, return_final_states=False)
    truth = naive_scan(**inputs)[0]
    wrong = naive_scan(**{**inputs, "dt": inputs["dt"].roll(1, 1)})[0]
    with pytest.raises(AssertionError, match="error"):
        assert_close_by_rule(wrong.float(), truth.float(), truth)
