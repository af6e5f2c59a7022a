"""Directories in the layout of VideoChat-Flash's released models: they load as they are, and what
does not fit is one sentence."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.hub import hub_config, hub_directory, hub_weights, tiny_tower
from tests.goldens import golden
from tests.model.encoders import flat, tower_config, tower_pixels
from timeviper_fast import TimeViper
from timeviper_fast.checkpoint.load import load_tokenizer, read_config
from timeviper_fast.checkpoint.videochat_flash import flash_config
from timeviper_fast.config import CompressionStage
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.model.vision.internvideo2 import position_table
from timeviper_fast.presets import VISION_PRESETS, preset

NAMES = ("model.embed_tokens.weight", "model.layers.2.self_attn.q_proj.bias")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of the released 448 px models at the size of the recorded runs."""
    monkeypatch.setitem(VISION_PRESETS, "umt-hd-large", tiny_tower())


@pytest.mark.parametrize(("shards", "model_type"), [(2, "videochat_flash_qwen"), (1, "qwen2")])
def test_a_directory_loads_as_it_is(tmp_path: Path, tiny: None, shards: int, model_type: str):
    path = hub_directory(tmp_path / "m", shards=shards, model_type=model_type)
    (path / "modeling_videochat_flash.py").write_text("raise SystemExit('remote code ran')")
    seen: list[tuple[int, int]] = []
    model = TimeViper.from_pretrained(path, progress=lambda *at: seen.append(at))
    stored = hub_weights()
    assert seen[-1] == (len(stored), len(stored))
    assert torch.equal(model.backbone.lm_head.weight, stored["lm_head.weight"])
    assert not torch.equal(model.backbone.lm_head.weight, model.backbone.embeddings.weight)
    mlp = stored["model.layers.4.mlp.down_proj.weight"]
    assert torch.equal(model.backbone.layers[9].mixer.down_proj.weight, mlp)
    assert model.tokenizer.decode(model.tokenizer.encode("<|im_start|>é")) == "<|im_start|>é"
    config = model.config
    assert (config.template, config.policy, config.mention_duration) == (
        "qwen_2", "videochat-flash", True,
    )  # fmt: skip
    assert config.repetition_penalty == 1.1
    assert config.stages == ()
    assert config.backbone.eos_token_ids == (258, 256)


def test_without_a_head_the_embedding_serves(tmp_path: Path, tiny: None) -> None:
    weights = hub_weights()
    del weights["lm_head.weight"]
    model = TimeViper.from_pretrained(hub_directory(tmp_path / "m", weights, penalty=None))
    assert model.backbone.lm_head.weight is model.backbone.embeddings.weight
    assert model.config.repetition_penalty == 1.0
    model.save_pretrained(tmp_path / "ours")
    again = TimeViper.from_pretrained(tmp_path / "ours")
    assert again.config == model.config
    assert torch.equal(again.backbone.lm_head.weight, weights["model.embed_tokens.weight"])


def internvideo2_weights() -> dict[str, torch.Tensor]:
    """The recorded tower, a projector of its width, and the recorded runs' language model."""
    kept = {k: v for k, v in hub_weights().items() if ".vision_tower." not in k}
    kept["model.mm_projector.mlp.0.weight"] = kept["model.mm_projector.mlp.2.weight"].clone()
    recorded = golden("vcf_internvideo2_tower")
    return kept | {k: v for k, v in recorded.items() if k.startswith("model.vision_tower.")}


@torch.no_grad()
def test_internvideo2_in_the_same_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are upstream's; without stored positions the tables that training begins with serve."""
    tower = replace(tower_config("internvideo2"), resize="pillow13")
    monkeypatch.setitem(VISION_PRESETS, "internvideo2", tower)
    about = {"mm_vision_tower": "internvideo2", "mm_hidden_size": 48}
    weights = internvideo2_weights()
    model = TimeViper.from_pretrained(hub_directory(tmp_path / "m", weights, **about))
    frames = golden("vcf_umt_tower")["frames_224"]
    want = golden("vcf_internvideo2_tower")["features_clip_224"]
    features = model.vision(tower_pixels(frames))
    torch.testing.assert_close(flat(features), want, rtol=0, atol=1e-5)
    video = frames.movedim(1, -1) if frames.shape[1] == 3 else frames
    answer = model.ask(video, "What?", max_new_tokens=2, stages="uniform:2:0.5", policy="uniform:4")
    assert [(s.before, s.after) for s in answer.stages] == [(64, 32)]
    positions = [name for name in weights if name.endswith("pos_embed")]
    for name in positions:
        del weights[name]
    model = TimeViper.from_pretrained(hub_directory(tmp_path / "n", weights, **about))
    assert len(positions) == 2
    assert torch.equal(model.vision.pos_embed, position_table(48, 16, 4))
    assert torch.equal(model.vision.img_pos_embed, position_table(48, 16, 1))


def test_a_tokenizer_that_names_code_is_refused_without_asking(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    path = hub_directory(tmp_path / "m")
    about = path / "tokenizer_config.json"
    changed = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    about.write_text(json.dumps(json.loads(about.read_text()) | changed))
    (path / "own.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(ValueError, match="directory must hold a Hugging Face tokenizer"):
        load_tokenizer(path)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, tiny: None) -> None:
    path = hub_directory(tmp_path / "m", shards=1)
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 7\n")
    with pytest.raises(
        ValueError, match=r"model.safetensors \(a pointer of Git LFS; `git lfs pull`"
    ):
        TimeViper.from_pretrained(path)


def change(fault: str) -> dict[str, torch.Tensor]:
    weights = hub_weights()
    first, second = NAMES
    if fault in ("renamed", "all"):
        weights["model.embed_token.weight"] = weights.pop(first)
    if fault in ("missing", "all"):
        del weights[second]
    if fault in ("mis-shaped", "all"):
        weights["model.mm_projector.mlp.0.weight"] = torch.zeros(48, 31)
    if fault in ("surplus", "all"):
        weights["model.image_newline"] = torch.zeros(48)
    return weights


RENAMED = "1 missing: backbone.embeddings.weight; 1 unexpected: model.embed_token.weight"
FAULTS = {
    "renamed": RENAMED,
    "missing": "1 missing: backbone.layers.4.mixer.q_proj.bias",
    "mis-shaped": "model.mm_projector.mlp.0.weight (48, 31) instead of (48, 32)",
    "surplus": "1 unexpected: model.image_newline",
    "all": "2 missing: backbone.embeddings.weight, backbone.layers.4.mixer.q_proj.bias; "
    "2 unexpected: ",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_error_lists_all_that_does_not_fit(tmp_path: Path, tiny: None, fault: str) -> None:
    path = hub_directory(tmp_path / "m", change(fault))
    with pytest.raises(ValueError, match=re.escape(FAULTS[fault])) as caught:
        TimeViper.from_pretrained(path)
    assert "must hold exactly the weights of this model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(tmp_path: Path, tiny: None) -> None:
    path = hub_directory(tmp_path / "m", shards=1)
    (path / "model.safetensors").unlink()
    torch.save(hub_weights(), path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"file must be safetensors .*pytorch_model.bin"):
        TimeViper.from_pretrained(path)


def test_a_shard_that_is_not_there(tmp_path: Path, tiny: None) -> None:
    path = hub_directory(tmp_path / "m")
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"all 2 shards of its index .*without model-00002-of-0"):
        TimeViper.from_pretrained(path)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    path = hub_directory(tmp_path / "m", architectures=["Qwen2VLForConditionalGeneration"])
    with pytest.raises(ValueError, match=r"VideoChatFlashQwenForCausalLM, got .*Qwen2VLFor"):
        read_config(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mm_vision_tower": "clip-large"}, "contain one of internvideo2, umt-hd, umt, got 'clip"),
        ({"mm_vision_tower": None}, "mm_vision_tower must contain one of internvideo2, umt-hd"),
        ({"mm_projector_type": "mlp2x_gelu"}, "mm_projector_type must be 'tome16_mlp_hd64'"),
        ({"mm_newline_position": "frame"}, "mm_newline_position must be 'nothing' (nothing else"),
        (
            {"mm_local_num_frames": 8},
            "mm_local_num_frames must be 4 (nothing else is built), got 8",
        ),
        ({"mm_hidden_size": 1408}, "mm_hidden_size must be 32, the width of umt-hd-large, got 140"),
        ({"mm_vision_select_layer": 9}, "feature_layer must name one of the 3 blocks, got 9"),
        ({"use_sliding_window": True}, "use_sliding_window must be False"),
        ({"tokenizer_model_max_length": "long"}, "tokenizer_model_max_length must be a positive"),
        (
            {"mm_llm_compress": True, "llm_compress_type": "hico"},
            "llm_compress_type must be one of",
        ),
        (
            {"mm_llm_compress": True, "llm_image_token_ratio_list": [0.5, 0.2]},
            "llm_image_token_ratio_list must be a list of 4 ratios, the first of them 1",
        ),
        (
            {"mm_llm_compress": True, "llm_compress_layer_list": ["4"]},
            "llm_compress_layer_list must be a list of blocks, got ['4']",
        ),
        (
            {"mm_llm_compress": True, "llm_compress_layer_list": [0, 2, 4]},
            "llm_compress_layer_list must be a list of blocks, got [0, 2, 4]",
        ),
        (
            {"mm_llm_compress": True, "llm_image_token_ratio_list": [1, 0.5, "x", 0.1]},
            "llm_image_token_ratio_list must be a list of 4 ratios, the first of them 1",
        ),
    ],
)
def test_mistakes_in_config_json(
    tmp_path: Path, tiny: None, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(
        (ValueError, NotImplementedError), match=f"^config.json: .*{re.escape(words)}"
    ):
        read_config(hub_directory(tmp_path / "m", **change))


def test_a_penalty_that_is_none(tmp_path: Path, tiny: None) -> None:
    path = hub_directory(tmp_path / "m", penalty=-1)
    with pytest.raises(ValueError, match="repetition_penalty must be a finite number above 0"):
        read_config(path)
    assert flash_config(hub_config(), {"repetition_penalty": None}).repetition_penalty == 1.0


def test_stages_that_a_config_switches_on() -> None:
    keys = {"mm_llm_compress": True, "mm_hidden_size": 1024, "num_hidden_layers": 28}
    drop = {"transfer": False, "score": "normed", "spacing": "linspace"}
    stages = flash_config(hub_config(**keys), {}).stages
    want = [CompressionStage(2 * b, "attention", k, **drop) for b, k in ((8, 0.5), (16, 0.25))]
    assert stages == (*want, CompressionStage(48, "attention", 0.125, **drop))
    keys |= {"llm_compress_type": "uniform0_attention", "llm_compress_layer_list": [4, 18]}
    keys |= {"llm_image_token_ratio_list": [1, 0.75, 0.25]}
    stages = flash_config(hub_config(**keys), {}).stages
    assert stages[0] == CompressionStage(8, "uniform", 0.75, **drop)
    assert stages[1] == CompressionStage(36, "attention", 0.25, **drop)


SHAPES = {
    "videochat-flash-2b-448": (1536, 8960, 12, 2, 151936, "umt-hd-large", 1024, 1.1),
    "videochat-flash-7b-224": (3584, 18944, 28, 4, 152064, "umt-large", 1024, 1.05),
    "videochat-flash-7b-448": (3584, 18944, 28, 4, 152064, "umt-hd-large", 1024, 1.05),
    "videochat-flash-7b-internvideo2": (
        3584, 18944, 28, 4, 152064, "internvideo2", 1408, 1.05,
    ),
}  # fmt: skip
PARAMETERS = dict(zip(SHAPES, (2_071_502_336, 7_922_617_856, 7_922_617_856, 8_620_852_736)))


@pytest.mark.parametrize("name", SHAPES)
def test_the_released_shapes_are_the_presets(name: str) -> None:
    """Parameter counts are those that the Hub publishes."""
    width, mlp, heads, kv, vocabulary, tower, wide, penalty = SHAPES[name]
    told = hub_config(
        hidden_size=width, intermediate_size=mlp, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocabulary, num_hidden_layers=28, mm_vision_tower=tower,
        mm_hidden_size=wide, eos_token_id=151645, tie_word_embeddings="2b" in name,
    )  # fmt: skip
    defaults = {"eos_token_id": [151645, 151643], "repetition_penalty": penalty}
    config = flash_config(told, defaults)
    assert config == preset(name)
    with torch.device("meta"):
        model = TimeViperNetwork(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert len(model.state_dict()) == (855 if tower == "internvideo2" else 646)


def test_reading_the_config_needs_no_weights(tmp_path: Path, tiny: None) -> None:
    path = hub_directory(tmp_path / "m", shards=1)
    (path / "model.safetensors").unlink()
    assert not read_config(path).backbone.tie_word_embeddings
    (path / "generation_config.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match=r"generation_config.json: file must hold a JSON object"):
        read_config(path)
