"""Every error that gated_cross_attention raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.gated_cross_attention.common import make
from tvkernels.gated_cross_attention import gated_cross_attention

GOOD = make(batch=1, n=4, m=6)
PACKED = {**GOOD, "cu_seqlens_q": [0, 1, 4], "cu_seqlens_k": [0, 3, 6]}


@pytest.mark.parametrize(
    ("base", "change", "sentence"),
    [
        (
            GOOD,
            {"text": torch.ones(4, 20)},
            r"gated_cross_attention: text must be \(batch, n, d_model\), got shape \(4, 20\)",
        ),
        (
            GOOD,
            {"text": torch.ones(1, 4, 20).int()},
            "text must be of dtype float32, .*, got int32",
        ),
        (
            GOOD,
            {"q": torch.ones(1, 5, 6, 8)},
            r"q must be \(batch, n, nheads, headdim\) = \(1, 4, any, any\), got shape",
        ),
        (
            GOOD,
            {"k": torch.ones(1, 6, 2, 4)},
            r"k must be \(batch, m, nkvheads, headdim\) = \(1, any, any, 8\), got shape",
        ),
        (
            GOOD,
            {"v": torch.ones(1, 5, 2, 8)},
            r"v must be \(batch, m, nkvheads, headdim\) = \(1, 6, 2, 8\), got shape",
        ),
        (
            GOOD,
            {"k": torch.ones(1, 6, 4, 8), "v": torch.ones(1, 6, 4, 8)},
            r"k must have key heads that divide nheads 6 \(.*\), got 4",
        ),
        (
            GOOD,
            {"v": torch.ones(1, 6, 2, 8).half()},
            r"v must have the dtype of text \(torch.float32\), got torch.float16",
        ),
        (
            GOOD,
            {"alpha": torch.zeros(2)},
            r"alpha must have one element \(one gate per call\), got shape \(2,\)",
        ),
        (GOOD, {"alpha": 0.3}, "alpha must be a tensor, got a float"),
        (
            GOOD,
            {"out_proj": torch.ones(20, 48).long()},
            "out_proj must be of dtype float32, .*, got int64",
        ),
        (GOOD, {"alpha": torch.tensor(0)}, "alpha must be of dtype float32, .*, got int64"),
        (
            GOOD,
            {"out_proj": torch.ones(48, 20)},
            r"out_proj must be \(d_model, nheads \* headdim\) = \(20, 48\), got shape \(48, 20\)",
        ),
        (
            GOOD,
            {"out_proj": None},
            r"out_proj must be given unless nheads \* headdim \(48\) is d_model \(20\), got None",
        ),
        (GOOD, {"k": GOOD["k"].to("meta")}, r"k must lie on the device of text \(cpu\), got meta"),
        (
            GOOD,
            {"cu_seqlens_q": [0, 4]},
            "cu_seqlens_q and cu_seqlens_k must be given together, got cu_seqlens_q alone",
        ),
        (
            GOOD,
            {"cu_seqlens_k": [0, 6]},
            "cu_seqlens_q and cu_seqlens_k must be given together, got cu_seqlens_k alone",
        ),
        (
            {**make(n=4, m=6), "cu_seqlens_q": [0, 4], "cu_seqlens_k": [0, 6]},
            {},
            r"text must have batch 1 \(cu_seqlens packs sequences\), got shape",
        ),
        (
            PACKED,
            {"cu_seqlens_k": [0, 6]},
            "must have the same number of entries, n_seqs \\+ 1 .*, got 3 and 2",
        ),
        (
            PACKED,
            {"cu_seqlens_q": [0, 4, 1]},
            r"cu_seqlens_q must rise from 0 to 4 \(the packed length\), got \[0, 4, 1\]",
        ),
        (
            PACKED,
            {"cu_seqlens_k": [0, 3.0, 6]},
            r"cu_seqlens_k must be a tensor or a sequence of ints, got \[0, 3.0, 6\]",
        ),
        (
            PACKED,
            {"cu_seqlens_k": torch.tensor([0, 3, 5])},
            r"cu_seqlens_k must rise from 0 to 6 \(the packed length\), got \[0, 3, 5\]",
        ),
        (
            PACKED,
            {"cu_seqlens_k": torch.tensor([0, 3, 6.0])},
            "cu_seqlens_k must be of dtype int32, int64, got float32",
        ),
    ],
)
def test_errors(base: dict[str, Any], change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        gated_cross_attention(**{**base, **change})
