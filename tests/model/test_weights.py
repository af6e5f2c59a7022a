"""Weights into a module: every mistake in one line, nothing half loaded, memory bounded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.model.checkpoints import (
    CONFIG,
    SIGLIP,
    Whole,
    assert_same,
    llm_directory,
    meta,
    randomise,
    siglip_tower,
)
from tests.model.goldens import TINY, TRANSV
from timeviper_fast import checkpoint, weights
from timeviper_fast.backbone import HybridBackbone
from timeviper_fast.checkpoint import (
    CheckpointError,
    load_backbone,
    load_pretrained,
    save_pretrained,
)
from timeviper_fast.config import (
    BackboneConfig,
    TimeViperConfig,
)
from timeviper_fast.names import Piece, vision_names
from timeviper_fast.vision import VisionTransformer
from timeviper_fast.weights import Source, load_weights, weight_files


def test_one_error_lists_everything_and_nothing_is_loaded(tmp_path):
    state = {f"{i}.weight": torch.zeros(3, 3) for i in range(20)}
    for i in range(8):
        state[f"extra.{i}"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(2, 3)
    state["1.weight"] = torch.zeros(3, 3, dtype=torch.int8)
    del state["2.weight"]
    torch.save(state, tmp_path / "w.bin")
    module = randomise(nn.Sequential(*[nn.Linear(3, 3) for _ in range(20)]))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, Source(tmp_path / "w.bin"))
    message = str(caught.value)
    assert str(tmp_path / "w.bin") in message
    assert "21 missing: 0.bias, 1.bias, 2.* (all 2), 3.bias, 4.bias, 5.bias and 14 more" in message
    assert (
        "8 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4, extra.5 and 2 more" in message
    )
    assert "2 of another shape or type: 0.weight (2, 3) instead of (3, 3)" in message
    assert "1.weight of type torch.int8 instead of floats" in message
    assert_same(module, before)


def test_a_checkpoint_of_another_size(tmp_path):
    other = TimeViperConfig(
        BackboneConfig(**{**vars(TINY), "hidden_size": 40}), SIGLIP, CONFIG.projector, TRANSV
    )
    save_pretrained(Whole(CONFIG), other, None, tmp_path / "m")
    with pytest.raises(
        CheckpointError, match=r"embeddings.weight \(97, 80\) instead of \(97, 40\)"
    ):
        load_pretrained(Whole, tmp_path / "m")


def test_no_weights_are_read_for_a_checkpoint_that_does_not_fit(tmp_path, monkeypatch):
    save_file({"weight": torch.zeros(4, 4)}, tmp_path / "w.safetensors")
    monkeypatch.setattr(weights, "_place", lambda *args: pytest.fail("weights were read"))
    with pytest.raises(CheckpointError, match="1 missing: bias"):
        load_weights(meta(nn.Linear, 4, 4), Source(tmp_path / "w.safetensors"))


def test_a_part_of_a_fused_parameter_is_missing(tmp_path):
    state = {k: v.contiguous() for k, v in siglip_tower().state_dict().items()}
    del state["encoder.layers.1.self_attn.k_proj.weight"]
    save_file(state, tmp_path / "w.safetensors")
    source = Source(tmp_path / "w.safetensors", vision_names(SIGLIP))
    with pytest.raises(CheckpointError, match=r"blocks.1.attn.qkv.weight \(2 of 3 parts\)"):
        load_weights(meta(VisionTransformer, SIGLIP), source)


def test_the_same_parameter_twice(tmp_path):
    directory = llm_directory(tmp_path / "llm", merge=False)
    state = load_file(directory / "model.safetensors")
    state["backbone.embedding.weight"] = state["backbone.embeddings.weight"].clone()
    save_file(state, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embeddings?.weight stored twice \(also as back"):
        load_backbone(HybridBackbone, directory)


def test_a_later_source_heals_an_earlier_one(tmp_path):
    save_file({"weight": torch.zeros(9), "bias": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file({"weight": torch.full((2, 2), 5.0)}, tmp_path / "b.safetensors")
    sources = [Source(tmp_path / f"{name}.safetensors") for name in "ab"]
    module = load_weights(meta(nn.Linear, 2, 2), *sources)
    assert_same(module, {"weight": torch.full((2, 2), 5.0), "bias": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"weight \(9,\) instead of \(2, 2\)"):
        load_weights(meta(nn.Linear, 2, 2), *reversed(sources))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    victim = tmp_path / "was-here"
    torch.save({"weight": Malicious(victim)}, tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match="plain tensors that load without running code") as e:
        load_weights(meta(nn.Linear, 2, 2), Source(tmp_path / "w.bin"))
    assert not victim.exists()
    assert re.search(r"unsupported GLOBAL posix.mkdir|Unsupported .*mkdir", str(e.value))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("content", "held"),
    [({"model": {"projector": {}}}, r"\(keys model\)"), ([torch.ones(1)], "class 'list'")],
)
def test_a_pickle_of_another_form(tmp_path, content, held):
    torch.save(content, tmp_path / "w.bin")
    words = f"file must hold a flat dictionary of tensors, got .*{held}"
    with pytest.raises(CheckpointError, match=words):
        load_weights(meta(nn.Linear, 2, 2), Source(tmp_path / "w.bin"))


def test_objects_among_tensors(tmp_path):
    torch.save({"weight": torch.ones(2, 2), "bias": "none"}, tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match="bias of type str instead of floats"):
        load_weights(meta(nn.Linear, 2, 2), Source(tmp_path / "w.bin"))


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"hello world, this is no tensor")
    with pytest.raises(CheckpointError, match="file must be readable safetensors, got"):
        load_weights(meta(nn.Linear, 2, 2), Source(tmp_path / "w.safetensors"))
    (tmp_path / "w.bin").write_bytes(b"hello world, this is no tensor")
    with pytest.raises(CheckpointError, match="without running code, got"):
        load_weights(meta(nn.Linear, 2, 2), Source(tmp_path / "w.bin"))
    save_file({"weight": torch.zeros(100)}, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-40])
    with pytest.raises(CheckpointError, match="file must be readable safetensors, got"):
        load_weights(meta(nn.Linear, 2, 2), Source(tmp_path / "cut.safetensors"))


def test_directories_that_hold_no_weights(tmp_path):
    words = "path must be a weight file, or a directory with model.safetensors or pytorch_model.bin"
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=words):
            weight_files(path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"all 2 shards .* without 1.safetensors, 2.safe"):
        weight_files(tmp_path)
    for path in (tmp_path, index):
        (tmp_path / "1.safetensors").touch()
        (tmp_path / "2.safetensors").touch()
        assert [file.name for file in weight_files(path)] == ["1.safetensors", "2.safetensors"]
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="index must have a weight_map of names to files"):
        weight_files(tmp_path)


def test_a_leading_dimension_of_one_may_be_left_out(tmp_path):
    save_file({"x": torch.arange(6.0).view(2, 3)}, tmp_path / "w.safetensors")
    module = nn.ParameterDict({"y": nn.Parameter(torch.zeros(1, 2, 3))})
    load_weights(module, Source(tmp_path / "w.safetensors", lambda key: (Piece("y"),)))
    assert torch.equal(module["y"], torch.arange(6.0).view(1, 2, 3))


MEASURED = """
import json, sys, torch
from torch import nn
from timeviper_fast.weights import Source, load_weights

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))

def build():
    shape = [nn.Linear(5000, 10000, bias=False, dtype=torch.bfloat16) for _ in range(6)]
    return nn.Sequential(*shape)

with torch.device("meta"):
    model, small = build(), nn.Linear(2, 2)
import safetensors, huggingface_hub
load_weights(small, Source(sys.argv[1] + "/small.safetensors"))
before = resident("VmRSS")
load_weights(model, Source(sys.argv[1]))
print(resident("VmHWM") - before, resident("VmRSS") - before, model[5].weight[-1, -1].item())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory counters")
def test_peak_memory_is_one_shard_beyond_the_model(tmp_path):
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "small.safetensors")
    where = {}
    for i in range(6):
        file = f"model-{i}.safetensors"
        size = 5000 * 10000 * 2
        header = {
            f"{i}.weight": {"dtype": "BF16", "shape": [10000, 5000], "data_offsets": [0, size]}
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(tmp_path / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            # the zeros in between are a hole in the file
            out.truncate(8 + len(text) + size)
            out.seek(-2, os.SEEK_END)
            out.write(b"\x80\x3f")
        where[f"{i}.weight"] = file
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURED), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    peak, after, last = map(float, run.stdout.split())
    shard = 100e6 / 2**20
    assert last == 1.0
    assert 5.9 * shard < after < 6.3 * shard
    assert peak < 7.6 * shard


def test_the_room_exports_what_it_says():
    for room in (checkpoint, weights):
        assert all(hasattr(room, name) for name in room.__all__)
