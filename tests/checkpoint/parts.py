"""Small checkpoints of every origin, and a module with the model's three parts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tests.goldens import golden
from tests.tiny import HF_TINY, SIGLIP
from timeviper_fast.config import TimeViperConfig
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.model.projector import Projector
from timeviper_fast.model.vision.vit import VisionTransformer


class Whole(nn.Module):
    """The three parts with weights, under the names they have in the model."""

    def __init__(self, config: TimeViperConfig) -> None:
        super().__init__()
        self.vision = VisionTransformer(config.vision)
        sizes = (config.vision.hidden_size, config.backbone.hidden_size)
        self.projector = Projector(config.projector, *sizes)
        self.backbone = HybridBackbone(config.backbone, config.stages)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def meta(build, *args) -> nn.Module:
    with torch.device("meta"):
        return build(*args)


def assert_same(module: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def llm_directory(path: Path, hf: dict | None = None, *, merge: bool = True) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(hf or HF_TINY))
    tensors = golden("tiny_weights")
    if not merge:
        tensors = {k: v for k, v in tensors.items() if "merge" not in k and "alpha" not in k}
    save_file(tensors, path / "model.safetensors")
    return path


def nemotron(**changes):
    from transformers import NemotronHConfig, NemotronHForCausalLM

    shape = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "hybrid_override_pattern": "M-M*-",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
        "chunk_size": 16,
    }
    return randomise(NemotronHForCausalLM(NemotronHConfig(**shape | changes)))


def siglip_tower():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = ("image_size", "patch_size", "hidden_size", "intermediate_size")
    sizes += ("num_hidden_layers", "num_attention_heads")
    shape = {name: getattr(SIGLIP, name) for name in sizes}
    config = SiglipVisionConfig(**shape, hidden_act="gelu")
    # small weights keep the softmax away from saturation
    tower = randomise(SiglipVisionModel(config)).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(0.2)
    return tower


def timm_state(tower) -> dict[str, torch.Tensor]:
    """The tower under timm's names, by hand (not by the product)."""
    state = tower.state_dict()
    out = {
        "patch_embed.proj.weight": state["embeddings.patch_embedding.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embedding.bias"],
        "pos_embed": state["embeddings.position_embedding.weight"][None],
        "norm.weight": state["post_layernorm.weight"],
        "norm.bias": state["post_layernorm.bias"],
        "attn_pool.latent": state["head.probe"],
    }
    renames = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for i in range(3):
        layer = f"encoder.layers.{i}."
        for leaf in ("weight", "bias"):
            for timm, hf in renames.items():
                out[f"blocks.{i}.{timm}.{leaf}"] = state[f"{layer}{hf}.{leaf}"]
            qkv = [state[f"{layer}self_attn.{letter}_proj.{leaf}"] for letter in "qkv"]
            out[f"blocks.{i}.attn.qkv.{leaf}"] = torch.cat(qkv)
    return out


def vlm_state() -> dict[str, torch.Tensor]:
    projector = golden("vlm_generate")
    state = {f"vision_backbone.featurizer.{k}": v for k, v in timm_state(siglip_tower()).items()}
    state |= {k: v for k, v in projector.items() if k.startswith("projector.")}
    return state | {f"llm_backbone.llm.{k}": v for k, v in golden("tiny_weights").items()}
