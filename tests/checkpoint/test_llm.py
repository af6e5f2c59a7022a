"""Which LLM a config.json describes."""

from __future__ import annotations

import pytest

from tests.checkpoint.test_qwen2 import SHAPE
from tests.tiny import HF_TINY
from timeviper_fast.checkpoint.llm import llm_config_from_hf, llm_names


def test_the_model_type_decides() -> None:
    assert llm_config_from_hf(SHAPE | {"model_type": "qwen2"}).family == "qwen2"
    assert llm_config_from_hf(HF_TINY).family == "nemotron_h"
    with pytest.raises(ValueError, match="model_type must be 'nemotron_h', 'nano' or 'qwen2'"):
        llm_config_from_hf(SHAPE | {"model_type": "llama"})


def test_names_are_those_of_the_family() -> None:
    qwen2 = llm_names(llm_config_from_hf(SHAPE | {"model_type": "qwen2"}))
    nano = llm_names(llm_config_from_hf(HF_TINY))
    assert qwen2("model.embed_tokens.weight")
    assert not nano("model.embed_tokens.weight")
    assert nano("backbone.embeddings.weight")
