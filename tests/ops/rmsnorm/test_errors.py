"""Every error that the norms raise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tvkernels.rmsnorm import layernorm_fn, rms_norm, rmsnorm_fn

X, W = torch.zeros(2, 8), torch.zeros(8)
ERRORS = [
    (lambda: rmsnorm_fn(torch.zeros(()), W, None), r"x must be \(..., dim\), got a scalar"),
    (lambda: rmsnorm_fn(X.int(), W, None), "rmsnorm_fn: x must be of dtype .*, got int32"),
    (
        lambda: layernorm_fn(X, W[:4], None),
        r"layernorm_fn: weight must be \(dim,\) = \(8\), got shape",
    ),
    (lambda: rms_norm(X, W.int(), 1e-5), "rms_norm: weight must be of dtype .*, got int32"),
    (lambda: rmsnorm_fn(X, W, X), r"rmsnorm_fn: bias must be \(dim,\) = \(8\), got shape \(2, 8\)"),
    (lambda: rmsnorm_fn(X, W, W.int()), "rmsnorm_fn: bias must be of dtype .*, got int32"),
    (lambda: rmsnorm_fn(X, W, None, X[:1]), r"z must be the shape of x = \(2, 8\), got shape"),
    (lambda: rmsnorm_fn(X, W, None, X.int()), "rmsnorm_fn: z must be of dtype .*, got int32"),
    (lambda: rmsnorm_fn(X, W.to("meta"), None), r"weight must lie on the device of x \(cpu\)"),
    (lambda: rmsnorm_fn(X, W, None, eps=-1e-5), "rmsnorm_fn: eps must be at least 0, got -1e-05"),
    (lambda: rmsnorm_fn(X, W, None, group_size=3), "group_size must divide dim = 8, got 3"),
    (lambda: rmsnorm_fn(X, W, None, group_size=0), "group_size must divide dim = 8, got 0"),
    (lambda: rms_norm(X, W, 1e-5, X[0]), r"residual must be the shape of x = \(2, 8\)"),
    (lambda: rms_norm(X, W, 1e-5, X.half()), "residual must be of dtype float32, got float16"),
    (lambda: rms_norm(X, W, 1e-5, X.to("meta")), r"residual must lie on the device of x \(cpu\)"),
]


@pytest.mark.parametrize(("call", "sentence"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
