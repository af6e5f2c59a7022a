"""Golden outputs of upstream TimeViper on a tiny random model, and our model with its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.model.nemotron_h import HybridBackbone

DATA = Path(__file__).parents[1] / "data"

TINY = BackboneConfig(
    vocab_size=97,
    hidden_size=80,
    intermediate_size=128,
    pattern="M-M*-M-M*-M-",
    num_attention_heads=5,
    head_dim=16,
    num_key_value_heads=1,
    ssm_state_size=16,
    mamba_num_heads=8,
    n_groups=2,
    mamba_head_dim=20,
    chunk_size=16,
)
TRANSV = (CompressionStage(5, "uniform", 0.5), CompressionStage(8, "attention", 0.2))
DROP_ONLY = tuple(replace(stage, transfer=False) for stage in TRANSV)


def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(DATA / f"{name}.safetensors")


def manifest(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


def tiny_backbone(stages: tuple[CompressionStage, ...] = ()) -> HybridBackbone:
    """Upstream's tiny model on our modules, weights renamed by hand (not by the product)."""
    ours = {}
    for name, value in golden("tiny_weights").items():
        name = name.removeprefix("backbone.")
        if name == "alpha":
            ours.update({f"transv.{i}.alpha": gate for i, gate in enumerate(value)})
        else:
            ours[name.replace("merge_modules.", "transv.")] = value
    if not any(stage.transfer for stage in stages):
        ours = {name: value for name, value in ours.items() if not name.startswith("transv.")}
    model = HybridBackbone(TINY, stages)
    model.load_state_dict(ours)
    return model.eval()
