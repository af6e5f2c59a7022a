"""Every error that selective_state_update raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.selective_state_update.common import run, step_inputs

INDICES = torch.zeros(2, dtype=torch.int32)
T = torch.zeros
ERRORS = [
    ({"state": T(2, 5)}, r"state must be \(batch, dim, dstate\) or \(batch, nheads, dim, dstate\)"),
    ({"x": T(2, 1, 4, 5)}, r"x must be \(batch, dim\) or \(batch, nheads, dim\), got shape"),
    ({"x": T(2, 3, 5)}, r"x must be \(batch, nheads, dim\) = \(2, 4, 5\), got shape \(2, 3, 5\)"),
    ({"dt": T(2, 4, 4)}, r"dt must be \(batch, nheads, dim\) = \(2, 4, 5\), got shape \(2, 4, 4\)"),
    ({"A": T(4, 5, 1)}, r"A must be \(nheads, dim, dstate\) = \(4, 5, 6\), got shape \(4, 5, 1\)"),
    ({"B": T(2, 2, 5)}, r"B must be \(batch, ngroups, dstate\) = \(2, any, 6\)"),
    ({"B": T(2, 3, 6)}, "B must have ngroups that divide nheads = 4, got 3"),
    ({"B": T(2, 0, 6)}, "B must have ngroups that divide nheads = 4, got 0"),
    ({"C": T(2, 1, 6)}, r"C must be the shape of B = \(2, 2, 6\), got shape \(2, 1, 6\)"),
    ({"D": T(4)}, r"D must be \(nheads, dim\) = \(4, 5\), got shape \(1, 4\)"),
    ({"dt_bias": T(5, 4)}, r"dt_bias must be \(nheads, dim\) = \(4, 5\), got shape \(5, 4\)"),
    ({"z": T(1, 4, 5)}, r"z must be \(batch, nheads, dim\) = \(2, 4, 5\), got shape \(1, 4, 5\)"),
    ({"x": T(2, 4, 5).int()}, "selective_state_update: x must be of dtype .*, got int32"),
    ({"state": T(2, 4, 5, 6).int()}, "state must be of dtype .*, got int32"),
    ({"A": T(4, 5, 6, device="meta")}, r"A must lie on the device of state \(cpu\), got meta"),
    ({"state_batch_indices": INDICES[:1]}, r"state_batch_indices must be \(batch,\) = \(2\)"),
    (
        {"state_batch_indices": torch.tensor([2, 0])},
        r"state_batch_indices must be below 2 \(the rows of the state\), got \[2, 0\]",
    ),
    ({"state_batch_indices": T(2)}, "state_batch_indices must be of dtype int32, int64"),
    (
        {"state": T(3, 4, 5, 6)},
        "state must have batch = 2 rows, as x, got 3; name the rows in state_batch_indices",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), ERRORS)
def test_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(**{**step_inputs(), **changes})
