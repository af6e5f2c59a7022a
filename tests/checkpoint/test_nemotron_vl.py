"""Directories in the layout of NVIDIA's released video models: they load as they are, and what does
not fit is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from tests.contract import device
from tests.goldens import golden, manifest
from tests.model.common import runs_of
from tests.nemotron_vl_directory import IDS, hub_config, hub_directory, hub_weights
from timeviper_fast import TimeViper
from timeviper_fast.checkpoint.load import read_config
from timeviper_fast.checkpoint.upstream import upstream_config
from timeviper_fast.config import CompressionStage, ProjectorConfig
from timeviper_fast.inference.generate import decode, prefill
from timeviper_fast.layout import Segment
from timeviper_fast.presets import preset
from timeviper_fast.video.preprocess import resize_normalize

TOWER = "vision_model.radio_model."


def test_a_directory_loads_as_it_is(tmp_path: Path) -> None:
    path = hub_directory(tmp_path / "m")
    (path / "modeling.py").write_text("raise SystemExit('remote code ran')")
    model = TimeViper.from_pretrained(path)
    config = model.config
    assert (config.template, config.policy) == ("nemotron_vl", "linspace:fps=2:max=128")
    assert config.stages == (CompressionStage(0, "content", 1.0, transfer=False, prune=0.75),)
    assert config.projector == ProjectorConfig("pixel_shuffle_mlp", inner_size=96)
    vision = config.vision
    # read off the tensors: 16 tokens in front, a table of 16 x 16, 2 blocks of 4 heads
    assert (vision.register_tokens, vision.position_side) == (16, 16)
    assert (vision.num_blocks, vision.num_attention_heads, vision.patch_size) == (2, 4, 8)
    assert (vision.image_size, vision.resize, config.tokens_per_frame) == (64, "float", 16)
    assert vision.image_mean == (0.48145466, 0.4578275, 0.40821073)
    assert config.backbone.pattern == "M-M*-M-M*-"
    assert config.backbone.eos_token_ids == (269,)
    stored = hub_weights()
    assert torch.equal(model.backbone.lm_head.weight, stored["language_model.lm_head.weight"])
    assert torch.equal(model.projector.layers[3].weight, stored["mlp1.3.weight"])
    prefix = stored[f"{TOWER}model.patch_generator.cls_token.token"]
    assert torch.equal(model.vision.get_parameter("prefix"), prefix)
    assert model.tokenizer.decode(model.tokenizer.encode("<img>a</img>")) == "<img>a</img>"


@torch.no_grad()
def test_frames_to_visual_tokens(tmp_path: Path) -> None:
    """Pixels, features, shuffled features and tokens are the recorded ones."""
    model = TimeViper.from_pretrained(hub_directory(tmp_path / "m"))
    run, vision = golden("nemotron_vl_generate"), model.config.vision
    look = (vision.image_size, vision.image_mean, vision.image_std, vision.resize)
    pixels = resize_normalize(run["frames"], *look)
    torch.testing.assert_close(pixels, run["pixel_values"], rtol=0, atol=2e-6)
    features = model.vision(pixels)
    merged = model.projector.merge(features)
    for got, name in ((features, "features"), (merged, "shuffled")):
        close(got, run[name])
    close(model.projector.project(merged), run["video_embeds"])
    close(model.encode(pixels), run["video_embeds"])


@pytest.mark.parametrize(("run", "stages"), [("full", "none"), ("evs", None)])
@torch.no_grad()
def test_frames_to_tokens(tmp_path: Path, run: str, stages: str | None) -> None:
    """From uint8 frames to six tokens, whole and with the pruning of config.json."""
    check_tokens(tmp_path, run, stages)


@pytest.mark.long
@pytest.mark.usefixtures("backend")
@torch.no_grad()
def test_frames_to_tokens_on_each_backend(tmp_path: Path) -> None:
    check_tokens(tmp_path, "evs", None)


def check_tokens(tmp_path: Path, run: str, stages: str | None) -> None:
    path = hub_directory(tmp_path / "m")
    model = TimeViper.from_pretrained(path, stages=stages, device=device())
    data, vision = golden("nemotron_vl_generate"), model.config.vision
    look = (vision.image_size, vision.image_mean, vision.image_std, vision.resize)
    ids, frames = data["full.input_ids"].to(device()), data["frames"].to(device())
    images = ids == IDS["<image>"]
    embeddings = model.backbone.embeddings(ids)
    embeddings[images] = model.encode(resize_normalize(frames, *look)).flatten(0, 1)
    segment = Segment.of_runs(
        len(ids), runs_of(images.cpu()), frame_tokens=model.config.frame_tokens(6)
    )
    read = prefill(model.backbone, embeddings[None], segment, max_new_tokens=6)
    if run == "evs":
        (pruned,) = read.records
        assert torch.equal(pruned.kept[0].cpu(), data["evs.mask"].nonzero()[:, 0])
    logits: list[torch.Tensor] = []
    tokens = decode(model.backbone, read, max_new_tokens=6, on_logits=logits.append)
    assert torch.equal(torch.cat(list(tokens)).cpu(), data[f"{run}.generated"])
    want = data[f"{run}.step_logits"]
    torch.testing.assert_close(torch.cat(logits).cpu(), want, rtol=0, atol=2e-4)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))


@torch.no_grad()
def test_a_config_of_sizes_alone_loads(tmp_path: Path) -> None:
    """Keys that only NVIDIA's code reads may be missing, and the encoder's sizes given as such."""
    told = {"architectures": ["NemotronH_Nano_VL_V2"], **manifest("nemotron_vl_weights")["config"]}
    path = hub_directory(tmp_path / "m", golden("nemotron_vl_weights"), shards=1)
    (path / "config.json").write_text(json.dumps(told))
    run = golden("nemotron_vl_generate")
    close(TimeViper.from_pretrained(path).encode(run["pixel_values"]), run["video_embeds"])


def test_text_has_the_ids_of_tokenizer_json(tmp_path: Path) -> None:
    """Nothing that transformers knows of other tokenizers changes how text is split."""
    path = hub_directory(tmp_path / "m")
    plain = Tokenizer.from_file(str(path / "tokenizer.json"))
    ours = TimeViper.from_pretrained(path).tokenizer
    for text in (
        "Frame 1 sampled at 0.50 seconds: <img>",
        "Was zählt? 12345",
        "何が見えますか",
        "Что?",
    ):
        assert ours.encode(text, add_special_tokens=False) == plain.encode(text).ids


def test_saved_in_our_format_it_is_the_same_model(tmp_path: Path) -> None:
    model = TimeViper.from_pretrained(hub_directory(tmp_path / "m"))
    model.save_pretrained(tmp_path / "ours")
    again = TimeViper.from_pretrained(tmp_path / "ours")
    assert again.config == model.config
    for (name, ours), (other, theirs) in zip(
        again.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs), name


def test_before_the_weights_are_there_sizes_are_those_of_the_config(tmp_path: Path) -> None:
    """A hub id is read in two steps; the second corrects what the files know better."""
    told = hub_config(projector_hidden_size=20480, patch_size=16, force_image_size=512)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        del told["vision_config"][name]
    (tmp_path / "config.json").write_text(json.dumps(told))
    config = read_config(tmp_path)
    vision = config.vision
    assert (vision.hidden_size, vision.intermediate_size, vision.num_blocks) == (1280, 5120, 32)
    assert (vision.num_attention_heads, vision.register_tokens) == (16, 16)
    assert (config.projector.inner_size, config.tokens_per_frame) == (20480, 256)


# llm_config of the two released models, as far as it is known
NANO = {
    "vocab_size": 132096,
    "hidden_size": 5120,
    "intermediate_size": 20480,
    "hybrid_override_pattern": "M-M-M-M*" + 5 * "-M-M-M-M*" + "-M-M-M-M-",
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 80,
    "n_groups": 8,
    "ssm_state_size": 128,
    "max_position_embeddings": 131072,
    "eos_token_id": 12,
}
OMNI = NANO | {
    "vocab_size": 131072,
    "hidden_size": 2688,
    "intermediate_size": 15680,
    "hybrid_override_pattern": 5 * "MEMEM*E" + "MEMEMEM*E" + "MEMEMEME",
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 262144,
    "eos_token_id": [2, 11],
}
VIT_H = {"args": {"model": "vit_huge_patch16_224"}}
TUBELETS = {"video_target_num_patches": 1024, "video_temporal_patch_size": 2}


@pytest.mark.parametrize(
    ("name", "llm", "vision"),
    [
        ("nemotron-nano-12b-v2-vl", NANO, VIT_H),
        ("nemotron-3-nano-omni-30b-a3b", OMNI, VIT_H | TUBELETS),
        ("nemotron-3-nano-omni-30b-a3b", OMNI, {"args": VIT_H["args"] | TUBELETS}),
    ],
)
def test_the_released_configs_are_the_presets(
    tmp_path: Path, name: str, llm: dict[str, Any], vision: dict[str, Any]
) -> None:
    sizes = {"patch_size": 16, "force_image_size": 512, "projector_hidden_size": 20480}
    told = hub_config(vision_config=vision, video_pruning_rate=0.7, **sizes)
    told["llm_config"] = {"model_type": "nemotron_h", **llm}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert read_config(tmp_path) == preset(name)


def test_the_vocabulary_is_that_of_the_files(tmp_path: Path) -> None:
    told = hub_config()["llm_config"] | {"vocab_size": 270}
    path = hub_directory(tmp_path / "m", llm_config=told)
    assert read_config(path).backbone.vocab_size == 272
    assert TimeViper.from_pretrained(path).backbone.lm_head.weight.shape[0] == 272


def test_what_other_parts_store_is_ignored(tmp_path: Path) -> None:
    weights = hub_weights() | {
        "sound_encoder.layers.0.weight": torch.zeros(3),
        "sound_projection.linear1.weight": torch.zeros(3, 3),
        "mtp.layers.0.norm.weight": torch.zeros(3),
        f"{TOWER}model.blocks.0.ls1.gamma": torch.ones(32),
    }
    TimeViper.from_pretrained(hub_directory(tmp_path / "m", weights))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            f"{TOWER}model.blocks.1.ls2.gamma",
            r"ls2.gamma must hold ones only \(this encoder has no",
        ),
        (f"{TOWER}model.norm.weight", "1 unexpected: vision_model.radio_model.model.norm.weight"),
        ("mlp1.1.bias", "1 unexpected: mlp1.1.bias"),
        ("language_model.backbone.layers.0.mixer.gate.weight", "1 unexpected: language_model"),
        ("vision_projector.mlp1.norm.weight", "1 unexpected: vision_projector.mlp1.norm.weight"),
    ],
)
def test_unknown_tensors_are_refused(tmp_path: Path, name: str, words: str) -> None:
    path = hub_directory(tmp_path / "m", hub_weights() | {name: torch.full((32,), 0.5)})
    with pytest.raises(ValueError, match=words):
        TimeViper.from_pretrained(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
            r"quantization_config must be absent \(FP8, NVFP4 .*; BF16 is\), got .*modelopt",
        ),
        ({"ps_version": "v1"}, "config.json: ps_version must be 'v2' .*, got 'v1'"),
        ({"downsample_ratio": 0.25}, "config.json: downsample_ratio must be 0.5 .*, got 0.25"),
        ({"llm_config": None}, "config.json: llm_config must be an object with fields, got None"),
        ({"vision_config": {}}, "vision_config.args.model must be one of vit_huge_patch16_224, or"),
        ({"norm_mean": 3}, "image_mean must be a tuple of 3 finite numbers, got 3"),
        ({"force_image_size": 65}, "image_size must be a multiple of patch_size"),
        ({"video_pruning_rate": 1.5}, "config.json: video_pruning_rate must lie in .*, got 1.5"),
    ],
)
def test_configs_that_are_not_served(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = hub_directory(tmp_path / "m", **changes)
    with pytest.raises((ValueError, NotImplementedError), match=words):
        read_config(path)


def test_a_head_that_is_missing_is_none_that_is_tied(tmp_path: Path) -> None:
    weights = hub_weights()
    del weights["language_model.lm_head.weight"]
    llm = hub_config()["llm_config"]
    apart = {"llm_config": llm | {"tie_word_embeddings": False}}
    with pytest.raises(ValueError, match="lm_head"):
        TimeViper.from_pretrained(hub_directory(tmp_path / "m", weights, **apart))
    tied = {"llm_config": llm | {"tie_word_embeddings": True}}
    assert read_config(hub_directory(tmp_path / "n", weights, **tied)).backbone.tie_word_embeddings


@pytest.mark.parametrize(("name", "said"), [("hidden_size", 99), ("num_hidden_layers", 9)])
def test_stated_sizes_are_those_of_the_weights(tmp_path: Path, name: str, said: int) -> None:
    stated = hub_config()["vision_config"]
    path = hub_directory(tmp_path / "m", vision_config=stated | {name: said})
    rule = rf"config.json: vision_config.{name} must be {stated[name]}, as in .*, got {said}"
    with pytest.raises(ValueError, match=rule):
        read_config(path)


def test_quantised_files_are_refused_by_their_list(tmp_path: Path) -> None:
    path = hub_directory(tmp_path / "m")
    (path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"weights must lie without it \(quantised weights are not"
    ):
        TimeViper.from_pretrained(path)


def test_without_pruning_there_is_no_stage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hub_config(video_pruning_rate=None)))
    assert read_config(tmp_path).stages == ()


def omni_directory(path: Path, **vision: Any) -> Path:
    """The recorded Omni in the layout of the hub; `vision` are keys of vision_config."""
    about = manifest("omni_weights")["config"]
    told = about["vision_config"]
    tower = {"video_target_num_patches": 36, "video_temporal_patch_size": 2, "args": {}}
    llm = about["llm_config"] | {"model_type": "nemotron_h", "eos_token_id": 11}
    config = hub_config(
        architectures=["NemotronH_Nano_Omni_Reasoning_V3"],
        model_type="NemotronH_Nano_Omni_Reasoning_V3",
        llm_config=llm,
        vision_config={**tower, "num_attention_heads": told["num_attention_heads"], **vision},
        projector_hidden_size=about["projector_hidden_size"],
        force_image_size=512,
        video_pruning_rate=0.5,
    )
    weights = golden("omni_weights") | {"sound_projection.norm.weight": torch.ones(4)}
    hub_directory(path, weights, **config)
    (path / "generation_config.json").write_text('{"eos_token_id": [2, 11]}')
    return path


@torch.no_grad()
def test_tubelets_to_visual_tokens(tmp_path: Path) -> None:
    model = TimeViper.from_pretrained(omni_directory(tmp_path / "m"))
    config, run = model.config, golden("omni_vision")
    assert (config.template, config.policy) == ("nemotron_omni", "linspace:fps=1:max=512")
    assert (config.vision.register_tokens, config.vision.clip_frames) == (10, 2)
    assert config.vision.resize == "float_aspect"
    assert config.visual_tokens(7) == 4 * 9
    frames = run["pixel_values_videos"]
    # the last frame is repeated to fill its tubelet
    frames = torch.cat([frames, frames[-1:]])
    close(model.vision.start(model.vision.embed(frames, 2), 2), run["radio.embeddings"])
    features = model.vision(frames)
    close(features, run["radio.features"])
    close(model.projector.merge(features), run["projector.input"])
    close(model.encode(frames), run["video_embeds"])


@pytest.mark.parametrize(("aspect", "tokens"), [(None, 8), (False, 9)])
def test_frames_keep_their_aspect_or_not(tmp_path: Path, aspect: bool | None, tokens: int) -> None:
    """4 x 8 patches of 36 at 16:9, or a square of 6 x 6."""
    told = {} if aspect is None else {"video_maintain_aspect_ratio": aspect}
    config = read_config(omni_directory(tmp_path / "m", **told)).seeing(72, 128)
    assert config.visual_tokens(6) == 3 * tokens
    assert config.frame_tokens(6) == tokens


def test_the_whole_model_is_no_part_to_convert(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"llm must be .*, a whole model \(convert --model takes it\)"
    ):
        upstream_config(hub_directory(tmp_path / "m"))
