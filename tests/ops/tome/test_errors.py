"""Every error that tome_merge raises."""

from __future__ import annotations

import pytest
import torch

from tvkernels.tome import tome_merge


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"x": torch.ones(9, 16)},
            r"tome_merge: x must be \(batch, seqlen, dim\), got shape \(9, 16\)",
        ),
        (
            {"x": torch.ones(1, 9, 16).long()},
            "tome_merge: x must be of dtype float32, .*, got int64",
        ),
        ({"num_tokens": 10}, "num_tokens must be an int between 1 and seqlen 9 .*, got 10"),
        ({"num_tokens": 3.0}, "num_tokens must be an int between 1 and seqlen 9 .*, got 3.0"),
        ({"x": [1.0]}, "x must be a tensor, got a list"),
        ({"num_tokens": 0}, "num_tokens must be an int between 1 and seqlen 9 .*, got 0"),
        ({"num_heads": 3}, r"num_heads must divide dim 16 \(.*\), got 3"),
        ({"num_heads": 0}, "num_heads must be an int of at least 1, got 0"),
        ({"order": "sorted"}, "order must be one of raw, ascending, descending, got 'sorted'"),
    ],
)
def test_errors(change: dict, sentence: str) -> None:
    arguments = {"x": torch.ones(1, 9, 16), "num_tokens": 4, **change}
    with pytest.raises(ValueError, match=sentence):
        tome_merge(**arguments)
