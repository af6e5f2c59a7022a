"""Every error that relu2 raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tvkernels.relu2 import relu2


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(3, dtype=torch.int32), "relu2: x must be of dtype .*, got int32"),
        ([1.0], "relu2: x must be a tensor, got a list"),
    ],
)
def test_errors(x: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        relu2(x)
