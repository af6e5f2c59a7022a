"""What the tests of several ops take: dtypes, the recorded tensors, laws' settings, random inputs."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import HealthCheck, settings

from tests.contract import device

DATA = Path(__file__).parents[1] / "data"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# the fixture `backend` is the same for every example
law = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# for two float64 results
exact = {"atol": 1e-9, "rtol": 1e-9}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal in float64 where the backend in force wants its tensors."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device())
