"""Tensors on a CPU and, without a GPU, on one; a machine with Triton, and one without."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tvkernels.core import backend


@pytest.fixture
def cpu() -> torch.Tensor:
    return torch.zeros(2, 4)


@pytest.fixture
def cuda() -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(2, 4, device="cuda")


@pytest.fixture
def triton_is_installed(monkeypatch):
    monkeypatch.setattr(backend, "_HAS_TRITON", True)


@pytest.fixture
def triton_is_missing(monkeypatch):
    monkeypatch.setattr(backend, "_HAS_TRITON", False)
