"""The tiny configurations, once: upstream's tiny model on our modules, its parts, its own config.json."""

from __future__ import annotations

from dataclasses import replace

from tests.goldens import golden
from timeviper_fast.config import (
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.model.nemotron_h import HybridBackbone

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


SIGLIP = VisionConfig(
    image_size=28,
    patch_size=7,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=2,
)
CONFIG = TimeViperConfig(
    backbone=TINY, vision=SIGLIP, projector=ProjectorConfig(num_tokens=4), stages=TRANSV
)
# upstream's config.json for the golden language model
HF_TINY = {
    "model_type": "nano",
    "vocab_size": 97,
    "hidden_size": 80,
    "intermediate_size": 128,
    "hybrid_override_pattern": "M-M*-M-M*-M-",
    "num_attention_heads": 5,
    "head_dim": 16,
    "num_key_value_heads": 1,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_n_groups": 2,
    "mamba_head_dim": 20,
    "mamba_chunk_size": 16,
    "max_position_embeddings": 131072,
}
