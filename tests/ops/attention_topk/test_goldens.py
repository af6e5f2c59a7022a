"""Token selection against what upstream TimeViper kept, and the rule of uniform stages."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.contract import on_device
from tests.ops.common import DATA
from tvkernels.attention_topk import (
    attention_topk,
    attention_topk_hidden,
    uniform_topk,
)


def golden_cases() -> list[dict[str, Any]]:
    return json.loads((DATA / "attention_scores.json").read_text())["cases"]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", golden_cases(), ids=lambda c: c["key"])
def test_goldens(case: dict[str, Any]) -> None:
    golden = on_device(load_file(DATA / "attention_scores.safetensors"))
    key, prefix, vision, keep = case["key"], case["prefix"], case["vision"], case["kept"]
    hidden, k_weight = golden[f"{key}.features"], golden["attn.k_proj.weight"]
    q = (hidden[:, -1] @ golden["attn.q_proj.weight"].T).unflatten(-1, (5, 16))
    k = (hidden @ k_weight.T).unflatten(-1, (1, 16))
    for got in (
        attention_topk(q, k, keep, (prefix, vision)),
        attention_topk_hidden(q, hidden, k_weight, keep, (prefix, vision)),
    ):
        assert torch.equal(got.kept[0], golden[f"{key}.kept_sorted"].long())
        want = golden[f"{key}.vision_scores"]
        torch.testing.assert_close(got.scores[0], want, atol=1e-7, rtol=1e-5)
        chosen = [prefix + t for t in got.kept[0].tolist()]
        rows = [*range(prefix), *chosen, *range(prefix + vision, hidden.shape[1])]
        assert torch.equal(hidden[:, rows], golden[f"{key}.features_out"])


def test_uniform_goldens() -> None:
    rows = json.loads((DATA / "uniform_indices.json").read_text())["rows"]
    golden = load_file(DATA / "uniform_indices.safetensors")
    assert len(rows) >= 20
    for row in rows:
        got = uniform_topk(row["before"], row["after"], "cpu")
        assert got.dtype == torch.int64
        assert torch.equal(got, golden[row["key"]].long()), row


@settings(max_examples=100, deadline=None, derandomize=True)
@given(length=st.integers(1, 200_000), share=st.floats(0, 1))
def test_uniform_is_the_float64_rule(length: int, share: float) -> None:
    keep = int(length * share)
    got = uniform_topk(length, keep, "cpu").numpy()
    steps = np.arange(keep, dtype=np.float64)
    want = np.trunc(steps * (length - 1) / (keep - 1)) if keep > 1 else np.zeros(keep)
    assert np.array_equal(got, want.astype(np.int64))
