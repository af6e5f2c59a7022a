"""Every error that compact raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tvkernels.compact import compact

X, D = torch.ones(2, 9, 4), torch.tensor([[1, 5], [0, 8]])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.ones(9, 4)}, r"compact: x must be \(batch, seqlen, dim\), got shape \(9, 4\)"),
        ({"x": torch.ones(2, 9, 4).int()}, "x must be of dtype float32, .*, got int32"),
        ({"dropped": D[:1]}, r"dropped must be \(batch, n\) = \(2, any\), got shape \(1, 2\)"),
        ({"dropped": D.int()}, "dropped must be of dtype int64, got int32"),
        (
            {"dropped": torch.arange(10).repeat(2, 1)},
            "dropped must hold at most the 9 rows of x, got 10",
        ),
        (
            {"dropped": torch.tensor([[5, 1], [0, 8]])},
            r"dropped must ascend, got 5, then 1$",
        ),
        ({"dropped": torch.tensor([[1, 1], [0, 8]])}, r"dropped must ascend, got 1, then 1$"),
        (
            {"dropped": torch.tensor([[-1, 1], [0, 8]])},
            r"dropped must lie within \[0, 9\), got -1 to 8$",
        ),
        (
            {"dropped": torch.tensor([[1, 5], [0, 9]])},
            r"dropped must lie within \[0, 9\), got 0 to 9$",
        ),
        (
            {"positions": torch.zeros(2, 8).long()},
            r"positions must be \(batch, seqlen\) = \(2, 9\), got shape \(2, 8\)",
        ),
        ({"positions": torch.zeros(2, 9)}, "positions must be of dtype int32, int64, got float32"),
        (
            {"dropped": D.to("meta")},
            r"dropped must lie on the device of x \(cpu\), got meta",
        ),
    ],
)
def test_errors(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        compact(**{"x": X, "dropped": D, **change})
