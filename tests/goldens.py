"""The recorded tensors of data/ and what is written beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data"


def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(DATA / f"{name}.safetensors")


def manifest(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())
