"""Every error that token selection raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tvkernels.attention_topk import (
    attention_topk,
    attention_topk_hidden,
    dropped_indices,
    uniform_topk,
)

KEYS = {"q": torch.ones(1, 4, 8), "k": torch.ones(1, 20, 2, 8), "keep": 3, "span": (2, 10)}
PACKED = {
    "q": torch.ones(2, 4, 8), "k": torch.ones(1, 20, 2, 8), "keep": [1, 2],
    "span": [(0, 5), (1, 6)], "cu_seqlens": [0, 8, 20],
}  # fmt: skip


@pytest.mark.parametrize(
    ("base", "change", "sentence"),
    [
        (
            KEYS,
            {"q": torch.ones(4, 8)},
            r"attention_topk: q must be \(batch, \[n_queries,\] nheads, headdim\), got shape \(4",
        ),
        (KEYS, {"q": torch.ones(1, 4, 8).int()}, "q must be of dtype float32, .*, got int32"),
        (KEYS, {"q": torch.ones(3, 4, 8)}, r"q must have the batch 1 of k, got shape \(3, 4, 8\)"),
        (
            KEYS,
            {"q": torch.ones(1, 3, 8)},
            r"k must have key heads that divide nheads 3 \(.*\), got 2",
        ),
        (
            KEYS,
            {"k": torch.ones(1, 20, 16)},
            r"k must be \(batch, seqlen, nkvheads, headdim\), got shape \(1, 20, 16\)",
        ),
        (
            KEYS,
            {"k": torch.ones(1, 20, 2, 4)},
            r"k must be \(batch, seqlen, nkvheads, headdim\) = \(any, any, any, 8\), got",
        ),
        (
            KEYS,
            {"k": torch.ones(1, 20, 2, 8).half()},
            r"k must have the dtype of q \(torch.float32\), got torch.float16",
        ),
        (
            KEYS,
            {"k": torch.ones(1, 20, 2, 8, device="meta")},
            r"k must lie on the device of q \(cpu\), got meta",
        ),
        (
            KEYS,
            {"span": (2, 19)},
            r"span must be \(start, length\) within seqlen 20, got \(2, 19\)",
        ),
        (
            KEYS,
            {"span": (-1, 5)},
            r"span must be \(start, length\) within seqlen 20, got \(-1, 5\)",
        ),
        (KEYS, {"span": (1, 2, 3)}, r"span must be \(start, length\), two ints, got \(1, 2, 3\)"),
        (KEYS, {"span": (2.0, 5.0)}, r"span must be \(start, length\), two ints, got \(2.0, 5.0\)"),
        (KEYS, {"span": None}, r"span must be \(start, length\), two ints, got None"),
        (KEYS, {"keep": 11}, "keep must be an int between 0 and length 10, got 11"),
        (KEYS, {"keep": -1}, "keep must be an int between 0 and length 10, got -1"),
        (KEYS, {"keep": True}, "keep must be an int between 0 and length 10, got True"),
        (KEYS, {"keep": [3]}, r"keep must be an int between 0 and length 10, got \[3\]"),
        (KEYS, {"keep": 0.5}, "keep must be an int between 0 and length 10, got 0.5"),
        (
            PACKED,
            {"k": torch.ones(2, 20, 2, 8)},
            r"k must have batch 1 \(cu_seqlens packs sequences\), got shape",
        ),
        (
            PACKED,
            {"q": torch.ones(0, 4, 8)},
            r"q must have at least one sequence \(cu_seqlens is given\), got 0",
        ),
        (
            PACKED,
            {"cu_seqlens": [0, 20]},
            r"cu_seqlens must have 3 entries \(q holds 2 sequences\), got 2",
        ),
        (
            PACKED,
            {"cu_seqlens": [0, 30, 20]},
            r"cu_seqlens must rise from 0 to at most 20 \(the packed length\), got \[0, 30, 20\]",
        ),
        (
            PACKED,
            {"cu_seqlens": torch.tensor([1, 8, 20])},
            r"cu_seqlens must rise from 0 to at most 20 \(the packed length\), got \[1, 8, 20\]",
        ),
        (
            PACKED,
            {"cu_seqlens": torch.tensor([0.0, 8, 20])},
            "cu_seqlens must be of dtype int32, int64, got float32",
        ),
        (
            PACKED,
            {"span": [(0, 5)]},
            r"span and keep must have one entry per sequence \(2\), got span",
        ),
        (PACKED, {"keep": [1]}, r"span and keep must have one entry per sequence \(2\), got span"),
        (
            PACKED,
            {"span": [(0, 5), (7, 6)]},
            r"span must be \(start, length\) within seqlen 12, got \(7, 6\)",
        ),
        (
            PACKED,
            {"span": None},
            "span and keep must have one entry per sequence .*, got span None",
        ),
        (PACKED, {"span": [5, 6]}, r"span must be \(start, length\), two ints, got 5"),
        (PACKED, {"keep": 2.0}, "keep must be an int between 0 and length 5, got 2.0"),
        (PACKED, {"keep": 6}, "keep must be an int between 0 and length 5, got 6"),
    ],
)
def test_errors(base: dict[str, Any], change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        attention_topk(**{**base, **change})


HIDDEN = {
    "q": torch.ones(1, 4, 8), "hidden": torch.ones(1, 20, 24), "k_weight": torch.ones(16, 24),
    "keep": 3, "span": (2, 10),
}  # fmt: skip
TABLE = torch.ones(20, 8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"hidden": torch.ones(20, 24)},
            r"attention_topk_hidden: hidden must be \(batch, seqlen, d_model\), got shape \(20",
        ),
        (
            {"tail": torch.ones(1, 5, 23)},
            r"tail must be \(batch, t, d_model\) = \(1, any, 24\), got shape \(1, 5, 23\)",
        ),
        (
            {"tail": torch.ones(1, 5, 24).half()},
            r"tail must have the dtype of hidden \(torch.float32\), got torch.float16",
        ),
        ({"tail": torch.ones(1, 5, 24, device="meta")}, "tail must lie on the device of hidden"),
        (
            {"tail": torch.ones(1, 5, 24), "rope": (TABLE, TABLE)},
            r"rope cos must be \(seqlen, headdim\) = \(25, 8\), got shape \(20, 8\)",
        ),
        (
            {"tail": torch.ones(1, 5, 24), "span": (12, 10)},
            r"span must be \(start, length\) within seqlen 20, got \(12, 10\)",
        ),
        (
            {"tail": torch.ones(1, 5, 24), "cu_seqlens": [0, 20], "span": [(2, 10)]},
            r"tail must be None \(cu_seqlens is given\), got shape \(1, 5, 24\)",
        ),
        (
            {"k_weight": torch.ones(16, 23)},
            r"k_weight must be \(nkvheads \* headdim, d_model\) = \(any, 24\), got",
        ),
        (
            {"k_weight": torch.ones(15, 24)},
            "k_weight must have rows in multiples of headdim 8, got 15",
        ),
        (
            {"k_weight": torch.ones(24, 24)},
            r"k_weight must have key heads that divide nheads 4 \(.*\), got 3",
        ),
        (
            {"k_weight": torch.ones(16, 24, device="meta")},
            r"k_weight must lie on the device of q \(cpu\), got meta",
        ),
        (
            {"k_weight": torch.ones(16, 24).long()},
            "k_weight must be of dtype float32, .*, got int64",
        ),
        (
            {"norm_weight": torch.ones(24).int()},
            "norm_weight must be of dtype float32, .*, got int32",
        ),
        ({"norm_weight": (0.5, 1e-5)}, "norm_weight must be a tensor, got a float"),
        (
            {"norm_weight": torch.ones(23)},
            r"norm_weight must be \(d_model,\) = \(24\), got shape \(23,\)",
        ),
        (
            {"norm_weight": (torch.ones(23), 1e-5)},
            r"norm_weight must be \(d_model,\) = \(24\), got shape \(23,\)",
        ),
        (
            {"k_bias": torch.ones(24)},
            r"k_bias must be \(nkvheads \* headdim,\) = \(16\), got shape \(24,\)",
        ),
        ({"k_bias": torch.ones(16).int()}, "k_bias must be of dtype float32, .*, got int32"),
        (
            {"k_bias": torch.ones(16, device="meta")},
            r"k_bias must lie on the device of q \(cpu\), got meta",
        ),
        (
            {"rope": (TABLE[:19], TABLE)},
            r"rope cos must be \(seqlen, headdim\) = \(20, 8\), got shape \(19, 8\)",
        ),
        (
            {"rope": (TABLE, TABLE[:, :4])},
            r"rope sin must be \(seqlen, headdim\) = \(20, 8\), got shape \(20, 4\)",
        ),
        (
            {"norm_weight": torch.ones(24, device="meta")},
            r"norm_weight must lie on the device of q \(cpu\), got meta",
        ),
        (
            {"rope": (TABLE, TABLE.long())},
            "rope sin must be of dtype float32, .*, got int64",
        ),
        (
            {"rope": (TABLE.to("meta"), TABLE)},
            r"rope cos must lie on the device of q \(cpu\), got meta",
        ),
        (
            {"q": torch.ones(1, 16, 1), "rope": (TABLE[:, :1], TABLE[:, :1])},
            r"q must have an even headdim \(rope turns halves\), got 1",
        ),
    ],
)
def test_hidden_errors(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        attention_topk_hidden(**{**HIDDEN, **change})


def test_index_errors() -> None:
    with pytest.raises(
        ValueError, match="uniform_topk: keep must be an int between 0 and length 4, got 5"
    ):
        uniform_topk(4, 5, "cpu")
    with pytest.raises(ValueError, match="dropped_indices: kept must be of dtype int64, got int32"):
        dropped_indices(torch.arange(3, dtype=torch.int32), 4)
    with pytest.raises(
        ValueError, match=r"kept must be \(..., keep\) with keep at most length 2, got"
    ):
        dropped_indices(torch.arange(3), 2)
    with pytest.raises(ValueError, match="uniform_topk: length must be an int of at least 0, got"):
        uniform_topk(4.0, 2, "cpu")
    for wrong, got in (([0, 4], "0 to 4"), ([-1, 2], "-1 to 2")):
        with pytest.raises(ValueError, match=rf"kept must hold indices in \[0, 4\), got {got}"):
            dropped_indices(torch.tensor(wrong), 4)
