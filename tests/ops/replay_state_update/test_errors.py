"""Every error that replay_state_update and replay_flush raise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.replay_state_update.common import HELD, run, step_inputs
from tvkernels import replay_flush

T = torch.zeros
SEQLENS = "cache_seqlens must be from written to written \\+ capacity = 3, alike for all heads"
# of what both functions take
HELD_ERRORS = [
    ({"state": T(2, 4, 5)}, r"state must be \(batch, nheads, dim, dstate\), got shape"),
    ({"state": T(2, 4, 5, 6).int()}, "state must be of dtype .*, got int32"),
    (
        {"state": T(3, 4, 5, 6)},
        "state must have batch = 2 rows, got 3; name the rows in state_batch",
    ),
    ({"pending_x": T(2, 6, 4, 4)}, r"pending_x must be \(batch, 2 \* capacity, nheads, dim\) = "),
    ({"pending_x": T(2, 5, 4, 5)}, r"pending_x must have 2 \* capacity slots, .* got 5"),
    ({"pending_x": T(2, 0, 4, 5)}, r"pending_x must have 2 \* capacity slots, .* got 0"),
    ({"pending_x": T(2, 6, 4, 5).int()}, "pending_x must be of dtype .*, got int32"),
    ({"pending_dt": T(2, 6, 4)}, r"pending_dt must be \(batch, 2 \* capacity, nheads, 2\) = "),
    ({"pending_dt": T(2, 6, 4, 2).int()}, "pending_dt must be of dtype .*, got int32"),
    ({"pending_B": T(2, 6, 2, 5)}, r"pending_B must be \(batch, 2 \* capacity, ngroups, dstate\) "),
    ({"pending_B": T(2, 6, 3, 6)}, "pending_B must have ngroups that divide nheads = 4, got 3"),
    ({"pending_B": T(2, 6, 0, 6)}, "pending_B must have ngroups that divide nheads = 4, got 0"),
    ({"pending_B": T(2, 6, 2, 6).int()}, "pending_B must be of dtype .*, got int32"),
    ({"written": T(2, 3).int()}, r"written must be \(batch, nheads\) = \(2, 4\), got shape"),
    ({"written": T(2, 4).long()}, "written must be of dtype int32, got int64"),
    ({"written": T(2, 4, device="meta").int()}, r"written must lie on the device of state"),
    ({"cache_seqlens": T(2, 1)}, r"cache_seqlens must be \(batch,\), got shape \(2, 1\)"),
    ({"cache_seqlens": T(2)}, "cache_seqlens must be of dtype int32, int64, got float32"),
    ({"cache_seqlens": torch.tensor([4, 9])}, SEQLENS + ", got 9 where written is from 5 to 5"),
    ({"cache_seqlens": torch.tensor([3, 5])}, SEQLENS + ", got 3 where written is from 4 to 4"),
    (
        {"written": torch.tensor([[4, 4, 4, 4], [5, 5, 4, 5]], dtype=torch.int32)},
        SEQLENS + ", got 5 where written is from 4 to 5",
    ),
    (
        {"state_batch_indices": torch.tensor([2, 0])},
        r"state_batch_indices must be below 2 \(the rows of the state\), got \[2, 0\]",
    ),
]
TOKEN_ERRORS = [
    (
        {"x": T(2, 4).double()},
        r"x must be \(batch, nheads, dim\) or \(batch, seqlen, nheads, dim\)",
    ),
    ({"x": T(2, 1, 4, 4).double()}, r"x must be \(batch, seqlen, nheads, dim\) = \(2, any, 4, 5\)"),
    ({"x": T(2, 1, 4, 5)}, "x must be of dtype float64, got float32"),
    ({"x": T(2, 4, 4, 5).double()}, "x must have a seqlen from 1 to capacity = 3, got 4"),
    ({"x": T(2, 0, 4, 5).double()}, "x must have a seqlen from 1 to capacity = 3, got 0"),
    ({"dt": T(2, 1, 5)}, r"dt must be \(batch, seqlen, nheads\) = \(2, 1, 4\), got shape"),
    ({"dt": T(2, 1, 4).int()}, "dt must be of dtype .*, got int32"),
    ({"A": T(4, 1)}, r"A must be \(nheads,\) = \(4\), got shape \(4, 1\)"),
    ({"A": T(4).int()}, "A must be of dtype .*, got int32"),
    ({"B": T(2, 1, 4, 6)}, r"B must be \(batch, seqlen, ngroups, dstate\) = \(2, 1, 2, 6\)"),
    ({"B": T(2, 1, 2, 6)}, "B must be of dtype float64, got float32"),
    ({"C": T(2, 1, 1, 6)}, r"C must be the shape of B = \(2, 1, 2, 6\), got shape"),
    ({"D": T(5)}, r"D must be \(nheads,\) = \(4\), got shape"),
    ({"dt_bias": T(5)}, r"dt_bias must be \(nheads,\) = \(4\), got shape"),
    ({"z": T(2, 1, 4, 4)}, r"z must be \(batch, seqlen, nheads, dim\) = \(2, 1, 4, 5\), got shape"),
    ({"dt_limit": (1.0, 0.0)}, r"dt_limit must be \(least, greatest\)"),
    ({"dt_softplus": None}, "dt_softplus must be True or False"),
]


@pytest.mark.parametrize(("changes", "sentence"), HELD_ERRORS + TOKEN_ERRORS)
def test_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^replay_state_update: {sentence}"):
        run(**{**step_inputs(), **changes})


@pytest.mark.parametrize(("changes", "sentence"), HELD_ERRORS)
def test_errors_of_a_flush(changes: dict[str, Any], sentence: str) -> None:
    given = {name: step_inputs()[name] for name in (*HELD, "cache_seqlens")}
    with pytest.raises(ValueError, match=f"^replay_flush: {sentence}"):
        replay_flush(**{**given, **changes})
