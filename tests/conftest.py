"""What holds for every test: fixed seeds, repeatable hypothesis runs, no way to a model hub."""

from __future__ import annotations

import os

# read when huggingface_hub is imported; a test that would download fails at once instead
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

settings.register_profile("house", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
