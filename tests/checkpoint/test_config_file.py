"""config.json of our own format: it round-trips, and every mistake in it is named."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import CONFIG, HF_TINY, SIGLIP
from timeviper_fast.checkpoint.config_file import config_from_dict, config_to_dict
from timeviper_fast.checkpoint.load import read_config
from timeviper_fast.config import (
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.errors import CheckpointError
from timeviper_fast.presets import preset

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
            score=draw(st.sampled_from(["raw", "normed"])),
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
    "name", ["tiny", "nemotron-nano-9b-v2", "nemotron-nano-12b-v2", "timeviper-qwen2.5-7b"]
)
def test_presets_round_trip(name):
    text = json.dumps(config_to_dict(preset(name)), allow_nan=False)
    assert '"inf"' in text
    assert config_from_dict(json.loads(text)) == preset(name)


# version of the format -> the fields that it added, by part
ADDED = {
    2: {"stages": ["score"]},
    3: {
        "backbone": ["family", "rope_theta"],
        "vision": ["clip_frames", "kind", "register_tokens"],
        "projector": ["image_tokens"],
        "stages": ["spacing"],
    },
    4: {
        "backbone": [
            "best_expert_groups",
            "expert_groups",
            "expert_latent_size",
            "expert_scale",
            "expert_size",
            "experts_per_token",
            "normalize_expert_weights",
            "num_experts",
            "shared_expert_size",
        ],
        "vision": ["frame_grid", "position_side"],
        "projector": ["inner_size"],
        "stages": ["match", "prune"],
    },
}


@pytest.mark.parametrize("version", ADDED)
def test_a_directory_of_an_older_version_means_what_it_meant(tmp_path, version):
    """Stages scored the raw stream, and the encoder was SigLIP; from `version` on, a file says so."""
    told = config_to_dict(CONFIG) | {"format": "timeviper_fast"}
    for added in [fields for since, fields in ADDED.items() if since >= version]:
        for part, names in added.items():
            for values in told[part] if part == "stages" else [told[part]]:
                for name in names:
                    del values[name]
    (tmp_path / "config.json").write_text(json.dumps(told | {"format_version": version - 1}))
    assert read_config(tmp_path) == CONFIG
    (tmp_path / "config.json").write_text(json.dumps(told | {"format_version": version}))
    part, names = next(iter(ADDED[version].items()))
    part = part.replace("stages", r"stages\[0\]")
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    lacks = ", ".join(names[:6]) + more
    with pytest.raises(CheckpointError, match=rf"{part} must have all .* no {lacks}$"):
        read_config(tmp_path)


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


_STAGE = {"layer": 1, "keep": 1, "select": "uniform", "transfer": True, "score": "raw"}
_STAGE |= {"spacing": "exact", "prune": 0.0, "match": "place"}


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
            r"config.json: stages\[0\] must have all of its fields, got no keep, match, prune, score, select, spacing and 1 more",
        ),
        (
            {"stages": [{**_STAGE, "keep": 0}]},
            r"config.json: stages\[0\]: keep must lie in \(0, 1\], got 0",
        ),
        (
            {"stages": [{**_STAGE, "transfer": "no"}]},
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
    """An error that no rule foresaw is a bug of ours and is not reported as a fault of the file."""
    values = config_to_dict(CONFIG)
    monkeypatch.setattr(VisionConfig, "__post_init__", lambda self: self.no_such_method())
    with pytest.raises(AttributeError, match="no_such_method"):
        config_from_dict(values)
    monkeypatch.setattr(VisionConfig, "__post_init__", lambda self: len(self.image_size))
    with pytest.raises(TypeError, match="has no len"):
        config_from_dict(values)


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
    with pytest.raises(CheckpointError, match="format_version must be 1 to 4, got 99"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config.json: file must be readable JSON, got"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="file must hold a JSON object, got"):
        read_config(tmp_path)
