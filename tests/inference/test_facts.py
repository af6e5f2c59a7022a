"""What `timeviper-fast info` says of a model."""

from __future__ import annotations

from dataclasses import replace

from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.facts import model_facts
from timeviper_fast.presets import preset


def test_stages_before_qwen2s_layers_are_named_as_its_users_count():
    """Its card says 4 and 18; a block of it is two layers of ours."""
    stages = (
        CompressionStage(8, "uniform", 0.75, transfer=False),
        CompressionStage(36, "attention", 0.25, transfer=False, score="normed"),
    )
    facts = model_facts(replace(preset("timeviper-qwen2.5-7b"), stages=stages))
    assert facts["stages"] == (
        "before block 4: uniform, keep 0.75; "
        "before block 18: attention, keep 0.25 of the normed stream"
    )
    assert facts["llm_parameters"] == 7_615_616_512
    content = CompressionStage(0, "content", 1.0, transfer=False, prune=0.7, match="best")
    facts = model_facts(replace(preset("timeviper-qwen2.5-7b"), stages=(content,)))
    assert facts["stages"] == "before block 0: content, remove 0.7"
    assert facts["layers"] == "0 Mamba-2, 28 attention, 28 MLP"
