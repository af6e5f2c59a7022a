"""Upstream's words for stages, transfer and projector."""

from __future__ import annotations

import pytest

from tests.goldens import manifest
from tests.tiny import DROP_ONLY, TRANSV
from timeviper_fast.checkpoint.mapping import Piece
from timeviper_fast.checkpoint.nemotron_h import llm_names
from timeviper_fast.checkpoint.upstream import (
    projector_from_upstream,
    stages_from_hf,
    stages_from_upstream,
)
from timeviper_fast.config import (
    CompressionStage,
    ProjectorConfig,
)
from timeviper_fast.presets import preset

UNI, ATTN = CompressionStage(7, "uniform", 0.5), CompressionStage(39, "attention", 0.1)


def test_stage_grammar():
    assert stages_from_upstream("uni_7_0.5-attn_39_0.1", "CrossAttention") == (UNI, ATTN)
    assert preset("nemotron-nano-9b-v2").stages == (UNI, ATTN)
    drop = stages_from_upstream("uni_7_0.5-attn_39_0.1", "no_merge")
    assert [(s.select, s.transfer) for s in drop] == [("uniform", False), ("attention", False)]
    mixed = stages_from_upstream("unidrop_2_0.8-attndrop_14_0.6-attn_39_1", "CrossAttention")
    assert [(s.layer, s.select, s.keep, s.transfer) for s in mixed] == [
        (2, "uniform", 0.8, False),
        (14, "attention", 0.6, False),
        (39, "attention", 1.0, True),
    ]
    run = manifest("tiny_weights")["config"]
    assert stages_from_upstream(run["pdrop_type_of_dropping_runs"], run["merge_module"]) == TRANSV


def test_stages_stored_beside_the_llm():
    hf = {"pdrop_type": "uni_7_0.5-attn_39_0.1", "merge_module": "CrossAttention"}
    assert stages_from_hf(hf | {"use_pdrop": True}) == (UNI, ATTN)
    assert stages_from_hf(hf | {"use_pdrop": False}) == stages_from_hf({}) == ()
    with pytest.raises(ValueError, match="use_pdrop must be true or false, got 'false'"):
        stages_from_hf(hf | {"use_pdrop": "false"})
    dropping = stages_from_hf({"use_pdrop": True, "pdrop_type": "uni_7_0.5"})
    assert dropping == (CompressionStage(7, "uniform", 0.5, transfer=False),)


@pytest.mark.parametrize(
    ("pdrop", "words"),
    [
        ("", "pdrop_type must be stages of the form TYPE_LAYER_RATIO.*got ''"),
        ("uni_7", "of the form TYPE_LAYER_RATIO.*got 'uni_7'"),
        ("uni_7_0.5_x", "of the form TYPE_LAYER_RATIO.*got 'uni_7_0.5_x'"),
        ("uni_seven_0.5", "of the form TYPE_LAYER_RATIO.*got 'uni_seven_0.5'"),
        ("uni_7_0.5-attn_39_half", "of the form TYPE_LAYER_RATIO.*got 'attn_39_half'"),
        ("rand_7_0.5", "stage types that contain attn or uni, got 'rand_7_0.5'"),
        ("uni_7_0", r"stage 'uni_7_0': .*keep must lie in \(0, 1\], got 0.0"),
        ("uni_7_1.5", r"stage 'uni_7_1.5': .*keep must lie in \(0, 1\], got 1.5"),
        ("uni_7_nan", r"stage 'uni_7_nan': .*keep must lie in \(0, 1\], got nan"),
    ],
)
def test_mistakes_in_stages(pdrop, words):
    with pytest.raises(ValueError, match=words):
        stages_from_upstream(pdrop, "CrossAttention")


def test_mistakes_in_the_merge_module():
    with pytest.raises(ValueError, match=r"merge_module must be .*got 'pool'"):
        stages_from_upstream("uni_7_0.5", "pool")


def test_projector_specifiers():
    assert projector_from_upstream("tome_mlp-16") == ProjectorConfig()
    assert projector_from_upstream("gelu_mlp") == ProjectorConfig(kind="gelu_mlp")
    assert projector_from_upstream("no-align+gelu_mlp").kind == "gelu_mlp"
    fused = projector_from_upstream("fused_tome_mlp-64")
    assert (fused.kind, fused.num_tokens) == ("fused_tome_mlp", 64)
    for wrong in ("tome_mlp", "tome_mlp-0", "no-align-16-+tome_mlp", "linear"):
        with pytest.raises(ValueError, match=f"arch_specifier must be .*got '{wrong[:4]}"):
            projector_from_upstream(wrong)


def test_alpha_counts_the_stages_that_transfer():
    stages = (DROP_ONLY[0], TRANSV[1])
    assert llm_names(stages)("backbone.alpha") == (Piece("transv.1.alpha", take=(0, 1)),)
    assert [p.take for p in llm_names(TRANSV)("model.alpha")] == [(0, 2), (1, 2)]
    assert llm_names(DROP_ONLY)("backbone.alpha") == ()
    assert llm_names()("backbone.alpha") is None
