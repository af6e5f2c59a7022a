"""The scan's backward of heads that are large for the shared memory of a GPU's block."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.contract import TRITON, as_tuple, cast, on_device
from tests.ops.ssd.common import scan_inputs
from tvkernels import use_backend
from tvkernels.ssd import mamba_chunk_scan_combined

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="needs a GPU, or TRITON_INTERPRET=1"),
]
if importlib.util.find_spec("triton") is not None and TRITON:
    from tvkernels.ssd import backward_kernel, kernel

RTX = 99 * 1024


@pytest.mark.parametrize(
    ("headdim", "d_state", "dtype", "chunk"),
    [
        (256, 128, torch.bfloat16, 128),
        (512, 64, torch.bfloat16, 64),
        (64, 512, torch.bfloat16, 16),
        (512, 64, torch.float32, 64),
    ],
)
def test_large_heads_have_short_chunks(
    headdim: int, d_state: int, dtype: torch.dtype, chunk: int
) -> None:
    """So that the tiles of a chunk fit in the shared memory of an RTX GPU's block."""
    assert backward_kernel._chunk_size(headdim, d_state, dtype) == chunk


@pytest.mark.parametrize(
    ("headdim", "d_state", "dtype"),
    [(16, 528, torch.bfloat16), (512, 144, torch.bfloat16), (272, 16, torch.float32)],
)
def test_a_head_too_large_for_the_gpu_is_refused(
    headdim: int, d_state: int, dtype: torch.dtype, monkeypatch: Any
) -> None:
    """Before any launch, of the forward too where a backward follows it, and only where a block has
    little shared memory."""
    inputs = scan_inputs(batch=1, seqlen=2, nheads=1, ngroups=1, headdim=headdim, d_state=d_state)
    inputs = cast(on_device(inputs), dtype)
    inputs["x"].requires_grad_()
    with use_backend("triton"):
        out, *_ = as_tuple(mamba_chunk_scan_combined(**inputs))
        out.sum().backward(retain_graph=True)
        monkeypatch.setattr(backward_kernel, "shared_memory", lambda device: RTX)
        words = rf"with 99 KiB of shared memory .* up to 65536 .* got {headdim} and {d_state};"
        with pytest.raises(NotImplementedError, match=words):
            out.sum().backward()
        with pytest.raises(NotImplementedError, match=words):
            mamba_chunk_scan_combined(**inputs)
        with torch.no_grad():
            mamba_chunk_scan_combined(**inputs)


def test_a_state_too_large_for_the_gpu_is_refused(monkeypatch: Any) -> None:
    inputs = scan_inputs(batch=1, seqlen=2, nheads=1, ngroups=1, headdim=16, d_state=272)
    inputs = cast(on_device(inputs), torch.float32)
    monkeypatch.setattr(kernel, "shared_memory", lambda device: RTX)
    with use_backend("triton"):
        mamba_chunk_scan_combined(**cast(inputs, torch.bfloat16))
        with pytest.raises(NotImplementedError, match=r"99 KiB .* d_state up to 256 .* got 272;"):
            mamba_chunk_scan_combined(**inputs)
    inputs = scan_inputs(batch=1, seqlen=2, nheads=1, ngroups=1, headdim=16, d_state=144)
    inputs = cast(inputs, torch.float64)
    with use_backend("triton"), pytest.raises(NotImplementedError, match=r"up to 128 .* got 144"):
        mamba_chunk_scan_combined(**on_device(inputs))


def test_a_state_of_float32_fits_the_shared_memory(monkeypatch: Any) -> None:
    """64 channels of 256 states take 131,072 bytes of shared memory on sm_120, 32 take 65,536."""
    x, B = torch.empty(1, 2, 1, 512), torch.empty(1, 2, 1, 256)

    def channels(x: torch.Tensor, B: torch.Tensor) -> int:
        return kernel._constants(x, B, B, None, x, True, (0.0, 1.0))[1]

    assert channels(x, B) == 64
    monkeypatch.setattr(kernel, "shared_memory", lambda device: RTX)
    assert (channels(x, B), channels(x, B[..., :128]), channels(x.half(), B.half())) == (
        32,
        128,
        64,
    )


@pytest.mark.parametrize(
    ("limits", "want"),
    [
        ({"shared_memory_per_block": 48, "shared_memory_per_block_optin": 99}, 99),
        ({"shared_memory_per_block": 64}, 64),
    ],
    ids=["CUDA", "ROCm"],
)
def test_the_limit_is_that_of_the_device(
    limits: dict[str, int], want: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**limits))
    assert backward_kernel.shared_memory(torch.device("cuda")) == want
