"""Models from other projects' parts: Hugging Face language models, SigLIP, upstream's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.checkpoint.parts import (
    Whole,
    assert_same,
    llm_directory,
    meta,
    nemotron,
    randomise,
    siglip_tower,
    timm_state,
    vlm_state,
)
from tests.goldens import golden
from tests.tiny import CONFIG, DROP_ONLY, HF_TINY, SIGLIP, TINY, TRANSV, tiny_backbone
from timeviper_fast.checkpoint.files import weight_files
from timeviper_fast.checkpoint.save import save_pretrained
from timeviper_fast.checkpoint.siglip import vision_names
from timeviper_fast.checkpoint.upstream import load_backbone, load_upstream, upstream_config
from timeviper_fast.checkpoint.weights import Source, load_weights
from timeviper_fast.config import (
    CompressionStage,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.errors import CheckpointError
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.model.vision.vit import VisionTransformer


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_transformers_directory(tmp_path, shard):
    theirs = nemotron()
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(weight_files(tmp_path)) > 2) == (shard == "20KB")
    model = load_backbone(HybridBackbone, tmp_path)
    expected = {k.removeprefix("model."): v for k, v in theirs.state_dict().items()}
    assert_same(model, expected)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("prefix", ["backbone.", "model."])
def test_pickled_directory(tmp_path, sharded, prefix):
    theirs = nemotron()
    theirs.config.save_pretrained(tmp_path)
    state = {k.replace("model.", prefix, 1): v for k, v in theirs.state_dict().items()}
    state["mtp.layers.0.norm.weight"] = torch.ones(3)
    if sharded:
        names = list(state)
        halves = {"pytorch_model-1.bin": names[:9], "pytorch_model-2.bin": names[9:]}
        for file, part in halves.items():
            torch.save({name: state[name] for name in part}, tmp_path / file)
        where = {name: file for file, part in halves.items() for name in part}
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": where}))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    model = load_backbone(HybridBackbone, tmp_path, dtype=torch.float64)
    expected = {k.removeprefix("model."): v.double() for k, v in theirs.state_dict().items()}
    assert_same(model, expected)


def test_pickles_of_old_torch(tmp_path):
    module = randomise(nn.Linear(3, 2))
    torch.save(module.state_dict(), tmp_path / "w.bin", _use_new_zipfile_serialization=False)
    loaded = load_weights(meta(nn.Linear, 3, 2), Source(tmp_path / "w.bin"))
    assert_same(loaded, module.state_dict())


def tied(directory: Path):
    theirs = nemotron(tie_word_embeddings=True)
    # transformers' class does not honour the flag by itself
    theirs.lm_head.weight = theirs.model.embeddings.weight
    theirs.config.save_pretrained(directory)
    state = {k.replace("model.", "backbone.", 1): v for k, v in theirs.state_dict().items()}
    return theirs, {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize("stored", ["embeddings", "head", "both"])
def test_tied_embeddings(tmp_path, stored):
    theirs, state = tied(tmp_path)
    if stored == "embeddings":
        del state["lm_head.weight"]
    if stored == "head":
        del state["backbone.embeddings.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = load_backbone(HybridBackbone, tmp_path)
    assert model.lm_head.weight is model.embeddings.weight
    assert torch.equal(model.lm_head.weight, theirs.lm_head.weight)
    save_pretrained(model, CONFIG, None, tmp_path / "own")
    assert "lm_head.weight" not in load_file(tmp_path / "own" / "model.safetensors")
    build = (HybridBackbone, model.config)
    again = load_weights(meta(*build), Source(tmp_path / "own"))
    assert again.lm_head.weight is again.embeddings.weight
    assert_same(again, dict(model.state_dict()))


def test_a_head_of_its_own_is_not_dropped_in_silence(tmp_path):
    _, state = tied(tmp_path)
    state["lm_head.weight"] += 1
    torch.save(state, tmp_path / "pytorch_model.bin")
    words = "lm_head.weight must equal embeddings.weight, with which this model ties it"
    with pytest.raises(CheckpointError, match=words):
        load_backbone(HybridBackbone, tmp_path)


def test_upstreams_llm_directory_brings_its_stages(tmp_path):
    stages = {"use_pdrop": True, "pdrop_type": "uni_5_0.5-attn_8_0.2"}
    hf = HF_TINY | stages | {"merge_module": "CrossAttention"}
    model = load_backbone(HybridBackbone, llm_directory(tmp_path / "llm", hf))
    assert tuple(module.stage for module in model.transv) == TRANSV
    assert_same(model, dict(tiny_backbone(TRANSV).state_dict()))


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_siglip_in_both_formats(tmp_path, prefix):
    tower = siglip_tower()
    theirs = {prefix + k: v.contiguous() for k, v in tower.state_dict().items()}
    save_file(theirs, tmp_path / "hf.safetensors")
    torch.save(timm_state(tower), tmp_path / "timm.bin")
    names = vision_names(SIGLIP)
    hf, timm = (
        load_weights(meta(VisionTransformer, SIGLIP), Source(tmp_path / file, names))
        for file in ("hf.safetensors", "timm.bin")
    )
    assert_same(hf, dict(timm.state_dict()))
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        truth = tower(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(hf(pixels), truth, rtol=0, atol=1e-5)


def test_a_tower_saved_by_transformers_in_shards(tmp_path):
    tower = siglip_tower()
    tower.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(weight_files(tmp_path)) > 1
    source = Source(tmp_path, vision_names(SIGLIP))
    model = load_weights(meta(VisionTransformer, SIGLIP), source)
    wanted = timm_state(tower)
    assert_same(model, {name: wanted[name] for name in model.state_dict()})


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_upstreams_flat_state_dict(tmp_path, prefix, suffix):
    state = {prefix + name: value for name, value in vlm_state().items()}
    file = tmp_path / f"vlm{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    model = load_upstream(Whole, CONFIG, vlm_file=file)
    assert_same(model.backbone, dict(tiny_backbone(TRANSV).state_dict()))
    projector = golden("vlm_generate")
    for i in (0, 2):
        ours, theirs = model.projector.layers[i], f"projector.projector.{i}"
        assert torch.equal(ours.weight, projector[f"{theirs}.weight"])
        assert torch.equal(ours.bias, projector[f"{theirs}.bias"])
    tower = timm_state(siglip_tower())
    assert_same(model.vision, {name: tower[name] for name in model.vision.state_dict()})


def test_the_later_part_wins(tmp_path):
    directory = llm_directory(tmp_path / "llm", merge=False)
    torch.save(timm_state(siglip_tower()), tmp_path / "siglip.bin")
    state = {k: v for k, v in vlm_state().items() if not k.startswith("vision")}
    state["llm_backbone.llm.lm_head.weight"] = torch.full((97, 80), 7.0)
    torch.save(state, tmp_path / "vlm.bin")
    parts = {"llm_dir": directory, "vision_file": tmp_path / "siglip.bin"}
    model = load_upstream(Whole, CONFIG, **parts, vlm_file=tmp_path / "vlm.bin")
    assert torch.equal(model.backbone.lm_head.weight, torch.full((97, 80), 7.0))
    # a directory that only has the config is enough beside a whole model
    (directory / "model.safetensors").unlink()
    model = load_upstream(Whole, CONFIG, **parts, vlm_file=tmp_path / "vlm.bin")
    assert torch.equal(model.backbone.lm_head.weight, torch.full((97, 80), 7.0))
    with pytest.raises(CheckpointError, match=r"or a directory with model.safetensors or"):
        load_upstream(Whole, CONFIG, **parts)


def test_parts_without_weights_are_said_in_one_line(tmp_path):
    directory = llm_directory(tmp_path / "llm", merge=False)
    with pytest.raises(CheckpointError) as caught:
        load_upstream(Whole, CONFIG, llm_dir=directory)
    with torch.device("meta"):
        parts = Whole(CONFIG)
    sizes = {
        name: len(part.state_dict())
        for name, part in (
            ("vision.", parts.vision),
            ("projector.", parts.projector),
            ("backbone.transv.", parts.backbone.transv),
        )
    }
    assert f"{sum(sizes.values())} missing:" in str(caught.value)
    for name, size in sizes.items():
        assert f"{name}* (all {size})" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "unexpected" not in str(caught.value)
    with pytest.raises(CheckpointError, match="vision_file, vlm_file must name at least one"):
        load_upstream(Whole, CONFIG)


def test_dropping_runs_have_no_transfer_weights(tmp_path):
    config = TimeViperConfig(TINY, SIGLIP, CONFIG.projector, DROP_ONLY)
    state = {k: v for k, v in vlm_state().items() if "merge_modules" not in k}
    state["llm_backbone.llm.backbone.alpha"] = torch.zeros(0)
    torch.save(state, tmp_path / "vlm.bin")
    model = load_upstream(Whole, config, vlm_file=tmp_path / "vlm.bin")
    assert not any("transv" in name for name in model.state_dict())


def test_alpha_of_another_number_of_stages(tmp_path):
    state = vlm_state() | {"llm_backbone.llm.backbone.alpha": torch.zeros(3)}
    torch.save(state, tmp_path / "vlm.bin")
    with pytest.raises(CheckpointError, match=r"alpha \(3,\) instead of \(2,\)"):
        load_upstream(Whole, CONFIG, vlm_file=tmp_path / "vlm.bin")


def test_upstream_config(tmp_path):
    directory = llm_directory(tmp_path / "llm")
    config = upstream_config(directory, arch="tome_mlp-4", pdrop="uni_5_0.5-attn_8_0.2")
    assert config == TimeViperConfig(TINY, VisionConfig(), CONFIG.projector, TRANSV)
    assert upstream_config(directory).stages == ()
    assert upstream_config(directory, pdrop="uni_5_0.5", merge="no_merge").stages == (
        CompressionStage(5, "uniform", 0.5, transfer=False),
    )
    siglip_tower().config.save_pretrained(tmp_path / "siglip")
    assert upstream_config(directory, vision=tmp_path / "siglip", arch="gelu_mlp").vision == SIGLIP
    with pytest.raises(ValueError, match=r"be an attention layer \(3, 8\)"):
        upstream_config(directory, pdrop="attn_5_0.5")


def test_clips_of_internvideo2_are_merged_together(tmp_path):
    """1,024 patches of 4 frames to 64 tokens; an image to 16, as upstream."""
    directory = llm_directory(tmp_path / "llm")
    config = upstream_config(directory, vision="internvideo2-1b-16-224px")
    assert config.clip_frames * config.vision.patches_per_frame == 1024
    assert [config.visual_tokens(frames) for frames in (1, 4, 5)] == [16, 64, 128]
    assert upstream_config(directory, vision="dinov2-vit-l").clip_frames == 1
