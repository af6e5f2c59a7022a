"""Every error that mamba2_decode_step raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.decode_step.common import step_inputs
from tvkernels.decode_step import mamba2_decode_step

IN = step_inputs()
ROW, CONV, SSM, WEIGHT, HEADS = (
    IN[k] for k in ("zxbcdt", "conv_state", "ssm_state", "conv1d_weight", "D")
)
INDEX = torch.zeros(2, dtype=torch.int32)
ERRORS = [
    ({"zxbcdt": ROW[0]}, r"step: zxbcdt must be \(batch, columns\), got shape \(56,\)"),
    ({"zxbcdt": ROW.int()}, "zxbcdt must be of dtype .*, got int32"),
    ({"zxbcdt": ROW[:, 1:]}, r"zxbcdt must be \(batch, 2 \* dim .*\) = \(2, 56\), got shape"),
    ({"ssm_state": SSM[:1]}, r"ssm_state must be \(batch, nheads, headdim, d_state\) = \(2, any"),
    ({"ssm_state": SSM.int()}, "ssm_state must be of dtype .*, got int32"),
    ({"conv_state": CONV[:1]}, r"conv_state must be \(batch, dim \+ .*, state_len\) = \(2, any"),
    ({"conv_state": CONV.half()}, "conv_state must be of dtype float64, got float16"),
    (
        {"conv_state": CONV[:, :-1]},
        r"conv_state must have 20 \+ 2 \* ngroups \* 3 channels, ngroups a divisor of 4, got 31",
    ),
    ({"conv_state": CONV[:, :20]}, "ngroups a divisor of 4, got 20"),
    ({"conv_state": torch.zeros(2, 38, 4).double()}, "ngroups a divisor of 4, got 38"),
    (
        {"conv_state": CONV[..., :3]},
        r"conv_state must have state_len of at least width = 4, .* \(the slot that is written must "
        r"hold no input that is still read\), got 3",
    ),
    ({"conv_state": CONV.to("meta")}, r"conv_state must lie on the device of zxbcdt \(cpu\)"),
    ({"cache_seqlens": INDEX[:1]}, r"cache_seqlens must be \(batch,\) = \(2\), got shape \(1,\)"),
    ({"cache_seqlens": INDEX.float()}, "cache_seqlens must be of dtype int32, int64, got float32"),
    ({"state_batch_indices": INDEX[:1]}, r"state_batch_indices must be \(batch,\) = \(2\)"),
    ({"state_batch_indices": INDEX + 2}, r"state_batch_indices must be below 2 .*, got \[2, 2\]"),
    ({"state_batch_indices": INDEX.half()}, "state_batch_indices must be of dtype int32, int64"),
    ({"conv1d_weight": WEIGHT[:-1]}, r"conv1d_weight must be \(dim .*, width\) = \(32, any\)"),
    ({"conv1d_weight": WEIGHT.int()}, "conv1d_weight must be of dtype .*, got int32"),
    ({"conv1d_weight": WEIGHT[:, :0]}, "width = 0, width at least 1"),
    ({"conv1d_bias": HEADS}, r"conv1d_bias must be \(dim .*\) = \(32\), got shape \(4,\)"),
    ({"conv1d_bias": ROW[0, :32].int()}, "conv1d_bias must be of dtype .*, got int32"),
    ({"activation": "gelu"}, "activation must be None, 'silu' or 'swish', got 'gelu'"),
    ({"dt_bias": HEADS[:2]}, r"dt_bias must be \(nheads,\) = \(4\), got shape \(2,\)"),
    ({"A_log": HEADS[:2]}, r"A_log must be \(nheads,\) = \(4\), got shape \(2,\)"),
    ({"D": HEADS.int()}, "D must be of dtype .*, got int32"),
    ({"D": HEADS.to("meta")}, r"D must lie on the device of zxbcdt \(cpu\), got meta"),
    ({"dt_limit": (0.5, 0.1)}, r"dt_limit must be \(least, greatest\) .*, got \(0.5, 0.1\)"),
    ({"dt_limit": (-1.0, 0.1)}, r"dt_limit must be \(least, greatest\) .*, got \(-1.0, 0.1\)"),
]


@pytest.mark.parametrize(("changes", "sentence"), ERRORS)
def test_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mamba2_decode_step(**{**IN, **changes})
