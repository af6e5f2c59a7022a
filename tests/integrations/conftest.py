"""Counts the calls that reach tvkernels, so that no test compares transformers with itself."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch

from tvkernels.integrations import patching


@pytest.fixture(autouse=True)
def _every_digit_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, cuDNN would round the operands of transformers' own convolution to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """How often each op was called by what is patched from now on."""
    counted: Counter[str] = Counter()

    def count(op):
        @functools.wraps(op)
        def counting(*args, **kwargs):
            counted[op.__name__] += 1
            return op(*args, **kwargs)

        return counting

    for name, op in patching.SERVED.items():
        monkeypatch.setitem(patching.SERVED, name, count(op))
    monkeypatch.setattr(patching, "rmsnorm_fn", count(patching.rmsnorm_fn))
    return counted
