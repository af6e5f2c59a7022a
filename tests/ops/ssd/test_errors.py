"""Every error that the Mamba-2 scan raises."""

from __future__ import annotations

import pytest
import torch

from tests.ops.ssd.common import Tensors, scan_inputs
from tvkernels.ssd import mamba_chunk_scan_combined

BAD: dict[str, tuple[Tensors, str]] = {
    "x dims": ({"x": torch.zeros(2, 70, 20)}, r"x must be \(batch, seqlen, nheads, headdim\)"),
    "x dtype": ({"x": torch.zeros(2, 70, 4, 5).int()}, "x must be of dtype float32"),
    "dt": ({"dt": torch.zeros(2, 70, 3)}, r"dt must be \(batch, seqlen, nheads\) = \(2, 70, 4\)"),
    "A": ({"A": torch.zeros(4, 6)}, r"A must be \(nheads,\) = \(4\), got shape \(4, 6\)"),
    "B": ({"B": torch.zeros(2, 69, 2, 6)}, r"B must be \(batch, seqlen, ngroups, d_state\)"),
    "C": ({"C": torch.zeros(2, 70, 2, 7)}, r"C must be .* = \(2, 70, 2, 6\)"),
    "groups": (
        {"B": torch.zeros(2, 70, 3, 6), "C": torch.zeros(2, 70, 3, 6)},
        "B must have ngroups that divide nheads = 4, got ngroups = 3",
    ),
    "D": ({"D": torch.zeros(4, 6)}, r"D must be .* = \(4, 5\), got shape \(4, 6\)"),
    "D dims": ({"D": torch.zeros(())}, r"D must be \(nheads,\) or \(nheads, headdim\)"),
    "z": ({"z": torch.zeros(2, 70, 20)}, "z must be the shape of x"),
    "dt_bias": ({"dt_bias": torch.zeros(5)}, r"dt_bias must be \(nheads,\) = \(4\)"),
    "initial_states": (
        {"initial_states": torch.zeros(2, 4, 6, 5)},
        r"initial_states must be \(batch, nheads, headdim, d_state\) = \(2, 4, 5, 6\)",
    ),
    "seq_idx": ({"seq_idx": torch.zeros(70).int()}, r"seq_idx must be \(batch, seqlen\)"),
    "seq_idx dtype": ({"seq_idx": torch.zeros(2, 70)}, "seq_idx must be of dtype int32, int64"),
    "chunk_size": ({"chunk_size": 0}, "chunk_size must be a positive int, got 0"),
    "chunk_size type": ({"chunk_size": 64.0}, r"chunk_size must be a positive int, got 64\.0"),
    "dt_limit": ({"dt_limit": (1.0, 0.1)}, r"dt_limit must be \(least, greatest\)"),
    "no dt_limit": (
        {"dt_limit": None},
        r"dt_limit must be \(least, greatest\), two numbers, got N",
    ),
    "dt_limit of None": (
        {"dt_limit": (0.0, None)},
        r"dt_limit must be \(least, greatest\), two num",
    ),
    "cu_seqlens": ({"cu_seqlens": torch.zeros(1, 2).int()}, r"cu_seqlens must be \(n_seqs \+ 1,"),
    "cu_seqlens empty": ({"cu_seqlens": torch.zeros(0).int()}, r"cu_seqlens must .* got \[\]"),
    "cu_seqlens dtype": ({"cu_seqlens": torch.zeros(2)}, "cu_seqlens must be of dtype int32"),
    "cu_seqlens start": ({"cu_seqlens": torch.tensor([2, 5])}, "cu_seqlens must rise from 0 to at"),
    "cu_seqlens end": (
        {"cu_seqlens": torch.tensor([0, 71])},
        r"cu_seqlens must rise from 0 to at most 70 \(the packed length\), got \[0, 71\]",
    ),
    "cu_seqlens falls": ({"cu_seqlens": torch.tensor([0, 4, 2])}, "cu_seqlens must rise from 0"),
    "no channel": (
        {"x": torch.zeros(2, 70, 4, 0)},
        r"x must have nheads and headdim of at least 1, got shape \(2, 70, 4, 0\)",
    ),
    "varlen without": (
        {"return_varlen_states": True},
        "cu_seqlens must be given with return_varlen_states, got None",
    ),
    "varlen batch": (
        {"return_varlen_states": True, "cu_seqlens": torch.tensor([0, 70])},
        "x must have batch 1 with return_varlen_states, got batch 2",
    ),
    "state_dtype": (
        {"state_dtype": "float32"},
        r"state_dtype must be None, float32, .* \(the state is float",
    ),
    "state_dtype wide": (
        {"x": torch.zeros(2, 70, 4, 5), "state_dtype": torch.float64},
        r"state_dtype must be None, float32, bfloat16, float16 \(the state is float32\), got",
    ),
    "device": ({"A": torch.zeros(4, device="meta")}, r"A must lie on the device of x \(cpu\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_argument_rule_and_value(case: str) -> None:
    changes, words = BAD[case]
    with pytest.raises(ValueError, match=f"mamba_chunk_scan_combined: {words}"):
        mamba_chunk_scan_combined(**{**scan_inputs(), **changes})
