"""Our own format: what is loaded is what was saved, and nothing is half written."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from tests.model.checkpoints import (
    CONFIG,
    HF_TINY,
    SIGLIP,
    Whole,
    assert_same,
    meta,
    randomise,
)
from timeviper_fast.checkpoint.config_file import config_from_dict, config_to_dict
from timeviper_fast.checkpoint.files import local_directory, weight_files
from timeviper_fast.checkpoint.load import load_pretrained, load_tokenizer, read_config
from timeviper_fast.checkpoint.save import save_pretrained
from timeviper_fast.config import (
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.errors import CheckpointError
from timeviper_fast.presets import preset
from timeviper_fast.text.byte_tokenizer import byte_tokenizer

positive = st.integers(1, 64)


@st.composite
def configs(draw) -> TimeViperConfig:
    kv, groups, heads = draw(positive), draw(st.integers(1, 8)), draw(st.integers(1, 4))
    low = draw(st.floats(0, 1))
    backbone = BackboneConfig(
        hidden_size=draw(positive),
        pattern=draw(st.text("M*-", min_size=3, max_size=12)),
        num_key_value_heads=kv,
        num_attention_heads=kv * heads,
        n_groups=groups,
        mamba_num_heads=groups * heads,
        norm_eps=draw(st.floats(1e-9, 1e-2)),
        tie_word_embeddings=draw(st.booleans()),
        time_step_limit=(low, draw(st.one_of(st.just(math.inf), st.floats(low, 9)))),
        eos_token_ids=tuple(draw(st.lists(st.integers(0, 99), max_size=3))),
    )
    kinds = ("gelu_mlp", "tome_mlp", "fused_tome_mlp")
    projector = ProjectorConfig(
        kind=draw(st.sampled_from(kinds)),
        num_tokens=draw(st.integers(1, 16)),
        token_order=draw(st.sampled_from(["raw", "ascending", "descending"])),
    )
    last = backbone.num_hidden_layers - 1
    layers = sorted(draw(st.sets(st.integers(0, last), max_size=3)))
    keeps = sorted(draw(st.tuples(*[st.floats(0.01, 1.0)] * len(layers))), reverse=True)
    stages = tuple(
        CompressionStage(
            layer,
            "attention" if backbone.pattern[layer] == "*" and draw(st.booleans()) else "uniform",
            keep,
            transfer=draw(st.booleans()),
        )
        for layer, keep in zip(layers, keeps)
    )
    template = draw(st.sampled_from(["nano_base", "qwen2"]))
    return TimeViperConfig(backbone, SIGLIP, projector, stages, template)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(configs())
def test_config_round_trip(config):
    text = json.dumps(config_to_dict(config), allow_nan=False)
    assert config_from_dict(json.loads(text)) == config


@pytest.mark.parametrize(
    "name", ["tiny", "nemotron-nano-9b-v2", "nemotron-nano-12b-v2", "nemotron-h-8b"]
)
def test_presets_round_trip(name):
    text = json.dumps(config_to_dict(preset(name)), allow_nan=False)
    assert '"inf"' in text
    assert config_from_dict(json.loads(text)) == preset(name)


def whole(values: dict, like: dict) -> dict:
    """`values`, with what they and their objects leave out taken from `like`."""
    filled = dict(like)
    for name, value in values.items():
        both = isinstance(value, dict) and isinstance(like.get(name), dict)
        filled[name] = whole(value, like[name]) if both else value
    return filled


@pytest.mark.parametrize("part", ["config", "backbone", "vision", "projector", "stages[0]"])
def test_what_is_left_out_is_not_that_of_another_model(part):
    """Each field of each part, also those that have a default in Python."""
    told = config_to_dict(CONFIG)
    inner = {"config": told, "stages[0]": told["stages"][0]}.get(part) or told[part]
    for name, value in list(inner.items()):
        del inner[name]
        words = re.escape(f"config.json: {part} must have all of its fields, got no {name}") + "$"
        with pytest.raises(CheckpointError, match=words):
            config_from_dict(told)
        inner[name] = value
    assert config_from_dict(told) == CONFIG


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"depth": 3}, "config.json: config must have only known fields, got depth"),
        ({"backbone": {"width": 3}}, "backbone must have only known fields, got width"),
        ({"backbone": 3}, "config.json: backbone must be an object with fields, got 3"),
        ({"backbone": None}, "config.json: backbone must be an object with fields, got None"),
        ({"vision": [1]}, r"config.json: vision must be an object with fields, got \[1\]"),
        ({"stages": None}, "config.json: stages must be a list of objects, got None"),
        ({"stages": {"a": 1}}, "config.json: stages must be a list of objects, got {'a': 1}"),
        ({"stages": [3]}, r"config.json: stages\[0\] must be an object with fields, got 3"),
        ({"stages": [{"layer": 1, "ratio": 1}]}, r"stages\[0\] must have only known fields"),
        (
            {"stages": [{"layer": 1}]},
            r"config.json: stages\[0\] must have all of its fields, got no keep, select, transfer",
        ),
        (
            {"stages": [{"layer": 1, "keep": 0, "select": "uniform", "transfer": True}]},
            r"config.json: stages\[0\]: keep must lie in \(0, 1\], got 0",
        ),
        (
            {"stages": [{"layer": 1, "keep": 1, "select": "uniform", "transfer": "no"}]},
            r"config.json: stages\[0\]: transfer must be True or False, got 'no'",
        ),
        ({"vision": {"hidden_act": "relu"}}, "config.json: vision: hidden_act must be one of"),
        ({"vision": {"image_mean": "abc"}}, "vision: image_mean must be a tuple of 3 .*got 'abc'"),
        ({"vision": {"feature_layer": 1.0}}, "vision: feature_layer must be an integer, got 1.0"),
        (
            {"backbone": {"time_step_limit": [0, 1, 2]}},
            r"config.json: backbone: time_step_limit must be a tuple .*got \(0, 1, 2\)",
        ),
        ({"backbone": {"time_step_limit": None}}, "backbone: time_step_limit must .*got None"),
        ({"backbone": {"norm_eps": "x"}}, "config.json: backbone: norm_eps must .*got 'x'"),
        ({"backbone": {"pattern": 7}}, "config.json: backbone: pattern must be .*got 7"),
        ({"backbone": {"attention_bias": "false"}}, "attention_bias must be True or False"),
        ({"projector": {"num_tokens": 9999}}, "config.json: config: projector.num_tokens must be"),
    ],
)
def test_mistakes_in_our_config(values, words):
    with pytest.raises(CheckpointError, match=words):
        config_from_dict(whole(values, config_to_dict(TimeViperConfig())))


def test_a_forgotten_check_is_seen(monkeypatch):
    """What no rule foresaw is a fault of ours and is not put down to the file."""
    values = config_to_dict(CONFIG)
    monkeypatch.setattr(VisionConfig, "__post_init__", lambda self: self.no_such_method())
    with pytest.raises(AttributeError, match="no_such_method"):
        config_from_dict(values)
    monkeypatch.setattr(VisionConfig, "__post_init__", lambda self: len(self.image_size))
    with pytest.raises(TypeError, match="has no len"):
        config_from_dict(values)


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_round_trip(tmp_path, shard):
    model = randomise(Whole(CONFIG))
    written: list[tuple[int, int]] = []
    target = save_pretrained(
        model,
        CONFIG,
        byte_tokenizer(),
        tmp_path / "new" / "model",
        max_shard_size=shard,
        progress=lambda done, total: written.append((done, total)),
    )
    files = weight_files(target)
    assert len(files) > 5 if shard == "40KB" else files == [target / "model.safetensors"]
    seen: list[tuple[int, int]] = []
    loaded, config, directory = load_pretrained(
        Whole, target, progress=lambda done, total: seen.append((done, total))
    )
    assert (config, directory) == (CONFIG, target)
    assert read_config(target) == CONFIG
    assert_same(loaded, dict(model.state_dict()))
    total = len(model.state_dict())
    assert seen == [(i + 1, total) for i in range(total)]
    assert len(written) == 1 + len(files)
    assert written[0] == (0, total)
    assert written == sorted(set(written))
    assert written[-1] == (total, total)
    assert all(p.requires_grad and type(p) is nn.Parameter for p in loaded.parameters())
    tokenizer = load_tokenizer(directory)
    assert tokenizer("né</s>").input_ids == byte_tokenizer()("né</s>").input_ids


def test_dtype_is_the_one_asked_for(tmp_path):
    model = randomise(Whole(CONFIG))
    save_pretrained(model, CONFIG, None, tmp_path / "m")
    half, _, _ = load_pretrained(Whole, tmp_path / "m", dtype=torch.bfloat16)
    assert_same(half, {name: value.bfloat16() for name, value in model.state_dict().items()})
    named, _, _ = load_pretrained(Whole, tmp_path / "m", dtype="bfloat16")
    assert_same(named, dict(half.state_dict()))
    for wrong in ("half", "int8", torch.int32, 16):
        rule = "dtype must be one of float64, float32, float16, bfloat16, got "
        with pytest.raises(CheckpointError, match=rule + re.escape(repr(wrong))):
            load_pretrained(Whole, tmp_path / "m", dtype=wrong)
    save_pretrained(half, CONFIG, None, tmp_path / "half")
    again, _, _ = load_pretrained(Whole, tmp_path / "half")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


def test_tokenizer_files_are_copied_or_absent(tmp_path):
    source = tmp_path / "source"
    byte_tokenizer().save_pretrained(source)
    (source / "secrets.txt").write_text("not a tokenizer file")
    module = nn.Linear(2, 2)
    save_pretrained(module, CONFIG, source, tmp_path / "with")
    assert load_tokenizer(tmp_path / "with")("a").input_ids == [97]
    assert not (tmp_path / "with" / "secrets.txt").exists()
    save_pretrained(module, CONFIG, None, tmp_path / "without")
    assert load_tokenizer(tmp_path / "without") is None
    (tmp_path / "without" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="load_tokenizer: directory must hold a Hugging Face"):
        load_tokenizer(tmp_path / "without")


@pytest.mark.parametrize("kind", ["nano", "nemotron_h"])
def test_the_tokenizer_of_a_model_that_transformers_does_not_know(tmp_path, kind, capfd):
    from transformers import AutoTokenizer

    byte_tokenizer().save_pretrained(tmp_path)
    truth = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HF_TINY | {"model_type": kind}))
    capfd.readouterr()
    logger = logging.getLogger("transformers")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        tokenizer = load_tokenizer(tmp_path)
    finally:
        logger.removeHandler(handler)
    assert capfd.readouterr() == ("", "")
    assert not records
    assert type(tokenizer) is type(truth)
    assert tokenizer.backend_tokenizer.to_str() == truth.backend_tokenizer.to_str()
    assert tokenizer.special_tokens_map == truth.special_tokens_map
    assert len(tokenizer) == len(truth)


def test_files_may_be_read_by_whom_the_directory_may(tmp_path):
    target = save_pretrained(nn.Linear(2, 2), CONFIG, None, tmp_path / "m")
    modes = {path.name: path.stat().st_mode & 0o777 for path in target.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == target.stat().st_mode & 0o666


def test_what_is_there_is_not_overwritten_by_accident(tmp_path):
    target = tmp_path / "m"
    save_pretrained(nn.Linear(2, 2), CONFIG, None, target)
    with pytest.raises(CheckpointError, match="directory must be new or empty, got"):
        save_pretrained(nn.Linear(2, 3), CONFIG, None, target)
    save_pretrained(nn.Linear(2, 3), CONFIG, None, target, overwrite=True)
    assert load_file(target / "model.safetensors")["weight"].shape == (3, 2)


def test_what_others_put_there_stays(tmp_path):
    """A model of many shards and a tokenizer, overwritten by one of one file and none."""
    target = tmp_path / "m"
    save_pretrained(
        randomise(Whole(CONFIG)), CONFIG, byte_tokenizer(), target, max_shard_size="40KB"
    )
    strangers = (
        ".git",
        "README.md",
        "model-lora.safetensors",
        "pytorch_model.bin",
        "config.json.orig",
    )
    for name in strangers:
        (target / name).write_text("mine")
    (target / "photos").mkdir()
    (target / "photos" / "config.json").write_text("mine")
    save_pretrained(nn.Linear(2, 3), CONFIG, None, target, overwrite=True)
    left = {"config.json", "model.safetensors", "photos", *strangers}
    assert {path.name for path in target.iterdir()} == left
    for name in (*strangers, "photos/config.json"):
        assert (target / name).read_text() == "mine"
    assert load_file(target / "model.safetensors")["weight"].shape == (3, 2)
    assert weight_files(target) == [target / "model.safetensors"]


def test_only_a_model_is_overwritten(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    save_pretrained(nn.Linear(2, 2), CONFIG, None, photos)
    (photos / "config.json").write_text("{}")
    (photos / "cat.jpg").write_text("meow")
    with pytest.raises(CheckpointError, match="be new, empty or a checkpoint to overwrite"):
        save_pretrained(nn.Linear(2, 2), CONFIG, None, photos, overwrite=True)
    assert (photos / "cat.jpg").exists()
    with pytest.raises(CheckpointError, match="directory must be new or empty"):
        save_pretrained(nn.Linear(2, 2), CONFIG, None, photos / "cat.jpg")
    with pytest.raises(CheckpointError, match=r"directory must be one that can be written \(.*cat"):
        save_pretrained(nn.Linear(2, 2), CONFIG, None, photos / "cat.jpg" / "m")
    with pytest.raises(CheckpointError, match="directory must be named, got ''"):
        save_pretrained(nn.Linear(2, 2), CONFIG, None, "")


def test_an_interrupted_save_leaves_nothing(tmp_path):
    class Interrupting:
        def save_pretrained(self, directory: str) -> None:
            assert (Path(directory) / "model.safetensors").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_pretrained(nn.Linear(2, 2), CONFIG, Interrupting(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []

    target = save_pretrained(nn.Linear(2, 2), CONFIG, None, tmp_path / "m")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(nn.Linear(2, 3), CONFIG, Interrupting(), target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


@pytest.mark.parametrize("moves", range(5))
@pytest.mark.parametrize("how", ["before", "after"])
def test_a_failed_rename_brings_the_old_checkpoint_back(tmp_path, monkeypatch, moves, how):
    target = save_pretrained(nn.Linear(2, 2), CONFIG, None, tmp_path / "m")
    (target / "tokenizer.json").symlink_to("nowhere")
    before = sorted(path.name for path in target.iterdir())
    assert len(before) + 2 == 5  # each is moved once, and the two new files
    real, done = Path.rename, []

    def rename(self: Path, to: Path) -> Path:
        done.append(to)
        if len(done) == moves + 1 and how == "before":
            raise KeyboardInterrupt
        real(self, to)
        if len(done) == moves + 1:
            raise KeyboardInterrupt
        return to

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(nn.Linear(2, 3), CONFIG, None, target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert sorted(path.name for path in target.iterdir()) == before
    assert load_file(target / "model.safetensors")["weight"].shape == (2, 2)


def test_a_link_to_a_directory_is_followed(tmp_path):
    real = save_pretrained(nn.Linear(2, 2), CONFIG, None, tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to("real")
    assert save_pretrained(nn.Linear(2, 3), CONFIG, None, link, overwrite=True) == real
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    assert link.is_symlink()
    assert load_file(real / "model.safetensors")["weight"].shape == (3, 2)
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(CheckpointError, match="save_pretrained: directory must be"):
        save_pretrained(nn.Linear(2, 2), CONFIG, None, tmp_path / "a")


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_directory_one_stands_in_stays_the_same(tmp_path, monkeypatch, overwrite):
    monkeypatch.chdir(tmp_path)
    if overwrite:
        save_pretrained(nn.Linear(2, 3), CONFIG, None, tmp_path)
    save_pretrained(nn.Linear(2, 2), CONFIG, None, ".", overwrite=overwrite)
    assert sorted(os.listdir(".")) == ["config.json", "model.safetensors"]
    assert load_file("model.safetensors")["weight"].shape == (2, 2)


def test_a_module_without_weights_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="module must hold weights, got one on the meta"):
        save_pretrained(meta(nn.Linear, 2, 2), CONFIG, None, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_another_format_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"path must be a model's directory \(with a config"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: file must be readable JSON, got"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HF_TINY))
    with pytest.raises(CheckpointError, match="path must be a timeviper_fast checkpoint"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "timeviper_fast", "format_version": 99}')
    with pytest.raises(CheckpointError, match="format_version must be 1, got 99"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config.json: file must be readable JSON, got"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="file must hold a JSON object, got"):
        read_config(tmp_path)


def test_a_path_or_a_hub_id(tmp_path, monkeypatch):
    import huggingface_hub.constants

    assert local_directory(tmp_path) == tmp_path
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "nowhere", tmp_path / "file", "./models/mine", "one", "a/b/c", ""):
        with pytest.raises(CheckpointError, match=r"path must be a directory or a Hugging Face"):
            local_directory(wrong)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="got 'nobody/nothing': no such directory") as caught:
        local_directory("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_downloaded(tmp_path, monkeypatch):
    import huggingface_hub

    save_pretrained(randomise(Whole(CONFIG)), CONFIG, None, tmp_path / "m")
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path / "m")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert read_config("someone/timeviper") == CONFIG
    _, _, directory = load_pretrained(Whole, "someone/timeviper")
    assert directory == tmp_path / "m"
    assert asked[0] == ("someone/timeviper", ["*.json"])
    assert "*.safetensors" in asked[-1][1]
