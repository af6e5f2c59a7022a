"""Every error that prefix_attention raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.prefix_attention.common import make
from tvkernels import prefix_attention

GOOD = make()
PAIR = GOOD["prefix"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"q": torch.ones(3, 4, 8)},
            r"^prefix_attention: q must be \(batch, n, nheads, headdim\), got shape \(3, 4, 8\)",
        ),
        ({"q": torch.ones(3, 3, 4, 8).int()}, "q must be of dtype float32, .*, got int32"),
        (
            {"key": torch.ones(2, 17, 2, 8)},
            r"key must be \(batch, capacity, nkvheads, headdim\) = \(3, any, any, 8\), got shape",
        ),
        ({"value": torch.ones(3, 16, 2, 8)}, r"value must be .* = \(3, 17, 2, 8\), got shape"),
        (
            {"key": torch.ones(3, 17, 3, 8), "value": torch.ones(3, 17, 3, 8)},
            r"key must have key heads that divide nheads 4 \(grouped query\), got 3",
        ),
        (
            {"key": torch.ones(3, 2, 2, 8), "value": torch.ones(3, 2, 2, 8)},
            r"key must have a capacity of at least n = 3 \(it holds the queries' own\), got 2",
        ),
        ({"value": GOOD["value"].half()}, r"value must have the dtype of q \(torch.float32\)"),
        ({"lengths": torch.tensor([9, 3])}, r"lengths must be \(batch,\) = \(3\), got shape"),
        ({"lengths": torch.ones(3)}, "lengths must be of dtype int32, int64, got float32"),
        (
            {"lengths": torch.tensor([9, 2, 14])},
            r"lengths must be from n = 3 to the capacity 17, got \[9, 2, 14\]",
        ),
        ({"lengths": torch.tensor([9, 3, 18])}, r"lengths must be from .*, got \[9, 3, 18\]"),
        ({"lengths": GOOD["lengths"].to("meta")}, r"lengths must lie on the device of q \(cpu\)"),
        ({"prefix": PAIR[0]}, r"prefix must be a pair \(key, value\), or None, got Tensor"),
        ({"prefix": PAIR[:1]}, r"prefix must be a pair \(key, value\), or None, got 1 values"),
        ({"prefix": (PAIR[0], None)}, "prefix value must be a tensor, got a NoneType"),
        (
            {"prefix": (PAIR[0][..., :4], PAIR[1])},
            r"prefix key must be \(1 or batch, m, nkvheads, headdim\) = \(any, any, 2, 8\), got",
        ),
        (
            {"prefix": tuple(x.repeat(2, 1, 1, 1) for x in PAIR)},
            r"prefix key must have batch 1 or 3 \(q's\), got 2",
        ),
        (
            {"prefix": (PAIR[0], PAIR[1][:, 1:])},
            r"prefix value must be of the shape of prefix key = \(1, 37, 2, 8\), got shape",
        ),
        ({"prefix": (PAIR[0].half(), PAIR[1])}, "prefix key must have the dtype of q"),
        ({"prefix": (PAIR[0], PAIR[1].to("meta"))}, "prefix value must lie on the device of q"),
        ({"scale": "1"}, "scale must be a number, got '1'"),
        (
            {"value": torch.ones(3, 17, 2, 8, requires_grad=True)},
            r"value must not require gradients \(the op is for inference and has none\), "
            r"got requires_grad=True; call it under torch.no_grad\(\)",
        ),
        (
            {"prefix": (PAIR[0].clone().requires_grad_(), PAIR[1])},
            "prefix key must not require gradients",
        ),
    ],
)
def test_errors(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        prefix_attention(**{**GOOD, **change})


def test_a_parameter_is_welcome_where_no_gradient_is_recorded() -> None:
    q = GOOD["q"].clone().requires_grad_()
    with torch.no_grad():
        assert not prefix_attention(**{**GOOD, "q": q}).requires_grad
