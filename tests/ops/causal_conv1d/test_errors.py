"""Every error that causal_conv1d_fn raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tvkernels.causal_conv1d import causal_conv1d_fn

X, W, S = torch.zeros(2, 8, 5), torch.zeros(8, 4), torch.zeros(2, 8, 3)
IDS = torch.zeros(2, 5, dtype=torch.int32)
META = torch.zeros(2, 8, 3, device="meta")
FN_ERRORS = [
    ({"x": X[0]}, r"causal_conv1d_fn: x must be \(batch, dim, seqlen\), got shape \(8, 5\)"),
    ({"x": X.int()}, "causal_conv1d_fn: x must be of dtype .*, got int32"),
    ({"weight": W[:, None]}, r"weight must be \(dim, width\) = \(8, any\), got shape \(8, 1, 4\)"),
    ({"weight": W[:4]}, r"weight must be \(dim, width\) = \(8, any\), got shape \(4, 4\)"),
    ({"weight": W.int()}, "weight must be of dtype .*, got int32"),
    ({"weight": W[:, :0]}, "weight must have a width of at least 1, got 0"),
    ({"weight": W.to("meta")}, r"weight must lie on the device of x \(cpu\), got meta"),
    ({"bias": W}, r"bias must be \(dim,\) = \(8\), got shape \(8, 4\)"),
    ({"bias": W[:, 0].int()}, "bias must be of dtype .*, got int32"),
    ({"activation": "relu"}, "activation must be None, 'silu' or 'swish', got 'relu'"),
    ({"seq_idx": IDS[:1]}, r"seq_idx must be \(batch, seqlen\) = \(2, 5\), got shape \(1, 5\)"),
    ({"seq_idx": IDS.float()}, "seq_idx must be of dtype int32, int64, got float32"),
    ({"initial_states": S[..., :2]}, r"initial_states must be \(batch, dim, width - 1\) ="),
    ({"initial_states": S.half()}, "initial_states must be of dtype float32, got float16"),
    ({"initial_states": META}, r"initial_states must lie on the device of x \(cpu\)"),
    ({"final_states_out": S[:1]}, r"final_states_out must be \(batch, dim, width - 1\) ="),
    ({"final_states_out": S.half()}, "final_states_out must be of dtype float32, got float16"),
]


@pytest.mark.parametrize(("changes", "sentence"), FN_ERRORS)
def test_fn_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        causal_conv1d_fn(**{"x": X, "weight": W, **changes})
