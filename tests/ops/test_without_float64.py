"""A device without float64, as Apple's MPS, runs every op's reference, forward and backward.

A dispatch mode stands in for the device: it refuses every float64 tensor with the error that PyTorch
raises on MPS.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tvkernels
from tests.ops.test_every_op import CASES, inputs_of, run

# what these ops lose without float64
WARNED = {"attention_topk", "attention_topk_hidden", "tome_merge"}


class WithoutFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype ({func})")
        return result


@pytest.mark.parametrize("op", CASES)
def test_every_reference_runs_without_float64(op: str) -> None:
    inputs = inputs_of(op)
    expected = run(op, inputs)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with tvkernels.use_backend("reference"), WithoutFloat64():
            got = run(op, inputs)
    assert {"has no float64" in str(w.message) for w in seen} == ({True} if op in WARNED else set())
    for ours, truth in zip(got, expected, strict=True):
        assert ours.dtype == truth.dtype
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


def test_packed_states_need_no_float64_either() -> None:
    inputs = inputs_of("mamba_chunk_scan_combined")
    inputs["seq_idx"] = (torch.arange(40) >= 17)[None].int()
    expected = run("mamba_chunk_scan_combined", inputs)
    with tvkernels.use_backend("reference"), WithoutFloat64():
        got = run("mamba_chunk_scan_combined", inputs)
    for ours, truth in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=0)


def test_the_mode_refuses_float64() -> None:
    with WithoutFloat64(), pytest.raises(TypeError):
        torch.ones(2).double()
