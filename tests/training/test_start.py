"""The model that a phase begins with: presets, tokenizers, and other compression stages."""

from __future__ import annotations

import pytest
import torch

from tests.training.common import CONFIG, STAGES, tiny
from timeviper_fast.config import CompressionStage
from timeviper_fast.training.start import first_config, initial_model, with_stages


def test_a_preset_has_seeded_weights():
    first, same, other = (initial_model("preset:tiny-for-tests", seed=s) for s in (1, 1, 2))
    weights = [model.state_dict() for model in (first, same, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not torch.equal(first.backbone.lm_head.weight, other.backbone.lm_head.weight)
    assert first_config("preset:tiny-for-tests") == first.config == CONFIG


def test_a_saved_model_is_loaded_in_the_precision_asked_for(tmp_path):
    tiny().save_pretrained(tmp_path / "m")
    model = initial_model(tmp_path / "m", dtype=torch.float64)
    assert model.dtype == torch.float64
    assert first_config(tmp_path / "m") == model.config


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(monkeypatch):
    from dataclasses import replace

    from timeviper_fast import presets

    small = replace(CONFIG, backbone=replace(CONFIG.backbone, vocab_size=257))
    monkeypatch.setitem(presets.PRESETS, "small", small)
    with pytest.raises(ValueError, match="tokenizer must have at most the model's 257 tokens"):
        initial_model("preset:small")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tokenizer must be a directory with tokenizer files"):
        initial_model("preset:tiny-for-tests", tokenizer=str(tmp_path))


def test_other_stages_keep_the_transfer_that_stays_and_get_new_ones_with_closed_gates():
    model = tiny()
    kept = model.backbone.transv[0].k_proj.weight
    stages = (STAGES[0], CompressionStage(3, "uniform", 0.2))
    with_stages(model, stages, seed=4)
    assert model.config.stages == model.backbone.stages == stages
    assert model.backbone.transv[0].k_proj.weight is kept
    assert float(model.backbone.transv[1].alpha) == 0
    assert float(model.backbone.transv[1].k_proj.weight.std()) > 0


def test_a_stage_that_only_drops_may_become_one_that_transfers():
    model = tiny()
    drops = tuple(CompressionStage(s.layer, s.select, s.keep, False, s.score) for s in STAGES)
    with_stages(model, drops, seed=0)
    assert not list(model.backbone.transv.parameters())
    with_stages(model, STAGES, seed=0)
    assert len(list(model.backbone.transv.parameters())) == 10
