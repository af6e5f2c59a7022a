"""The LLM that a config.json of Hugging Face describes, and the names of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timeviper_fast.checkpoint.mapping import NameMap
from timeviper_fast.checkpoint.nemotron_h import backbone_config_from_hf
from timeviper_fast.checkpoint.nemotron_h import llm_names as nemotron_h_names
from timeviper_fast.checkpoint.qwen2 import qwen2_config_from_hf, qwen2_names
from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.errors import fail

__all__ = ["llm_config_from_hf", "llm_names"]


def llm_config_from_hf(config: Mapping[str, Any]) -> BackboneConfig:
    """The shape of a Qwen2 or Qwen2.5 (model_type "qwen2") or of a Nemotron-H.

    Raises:
        ValueError, NotImplementedError: see `qwen2.py` and `nemotron_h.py`.
    """
    kind = config.get("model_type", "nemotron_h")
    if kind not in ("nemotron_h", "nano", "qwen2"):
        fail("config.json", "model_type", "be 'nemotron_h', 'nano' or 'qwen2'", kind)
    if kind == "qwen2":
        return qwen2_config_from_hf(config)
    return backbone_config_from_hf(config)


def llm_names(backbone: BackboneConfig, stages: Sequence[CompressionStage] = ()) -> NameMap:
    """The map from published names of the LLM's weights to ours."""
    if backbone.family == "qwen2":
        return qwen2_names(stages)
    return nemotron_h_names(stages, backbone.num_experts)
