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

from tests.checkpoint.parts import Whole, assert_same, llm_directory, meta, randomise, siglip_tower
from tests.tiny import CONFIG, SIGLIP, TINY, TRANSV
from timeviper_fast.checkpoint import (
    weights,
)
from timeviper_fast.checkpoint.load import load_pretrained
from timeviper_fast.checkpoint.mapping import Piece
from timeviper_fast.checkpoint.save import save_pretrained
from timeviper_fast.checkpoint.siglip import vision_names
from timeviper_fast.checkpoint.upstream import load_backbone
from timeviper_fast.checkpoint.weights import Source, load_weights
from timeviper_fast.config import (
    BackboneConfig,
    TimeViperConfig,
)
from timeviper_fast.errors import CheckpointError
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.model.vision.vit import VisionTransformer


def test_one_error_lists_everything_and_nothing_is_loaded(tmp_path):
    state = {f"{i}.weight": torch.zeros(3, 3) for i in range(20)}
    state |= {f"{i}.extra": torch.zeros(1) for i in range(3)}
    state |= {f"odd.{i}.bias": torch.zeros(1) for i in range(6)}
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
    biases = "{" + ",".join(str(i) for i in range(20) if i != 2) + "}.bias"
    assert f"21 missing: {biases}, 2.* (all 2); " in message
    assert "9 unexpected: {0,1,2}.extra, odd.* (all 6); " in message
    assert "2 of another shape or type: 0.weight (2, 3) instead of (3, 3), 1.weight of " in message
    assert message.endswith("1.weight of type torch.int8 instead of floats")
    assert_same(module, before)


@pytest.mark.parametrize("kind", ["missing", "unexpected", "another shape"])
def test_every_single_name_is_in_the_error(tmp_path, kind):
    """Expanded again, the abbreviated names in the error are exactly the wrong ones."""
    whole = {f"{a}.{b}.{c}": torch.zeros(1) for a in "xyz" for b in range(9) for c in "abc"}
    whole |= {"top": torch.zeros(1), "9": torch.zeros(1)}
    wrong = {n for i, n in enumerate(whole) if n[0] == "x" or n == "9" or (i % 7 < 2)}
    rest = {name: value for name, value in whole.items() if name not in wrong}
    module = meta(lambda: Flat(whole if kind != "unexpected" else rest))
    stored = {
        "missing": rest,
        "unexpected": whole,
        "another shape": whole | {name: torch.zeros(2) for name in wrong},
    }[kind]
    torch.save(stored, tmp_path / "w.bin")
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, Source(tmp_path / "w.bin"))
    line = re.search(rf"got {len(wrong)} [^:;]*{kind}[^:;]*: ([^;]*)$", str(caught.value))[1]
    line = line.replace(" (2,) instead of (1,)", "")
    listed = set()
    for entry in re.findall(r"(?:{[^}]*}|[^,{])+", line):
        found = re.fullmatch(r" ?([^{ ]*?)(?:{(.*)})?([^{ ]*)(?: \(all \d+\))?", entry)
        names = [found[1] + n + found[3] for n in (found[2] or "").split(",")]
        for name in names:
            prefix = name.removesuffix("*")
            listed |= {n for n in whole if n.startswith(prefix)} if name != prefix else {name}
    assert listed == wrong
    assert len(line) < 0.75 * len(", ".join(wrong))


class Flat(nn.Module):
    """Parameters under any dotted names."""

    def __init__(self, shapes: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in shapes.items():
            *parts, leaf = name.split(".")
            owner = self
            for part in parts:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(leaf, nn.Parameter(torch.empty_like(value)))


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


def test_a_leading_dimension_of_one_may_be_left_out(tmp_path):
    save_file({"x": torch.arange(6.0).view(2, 3)}, tmp_path / "w.safetensors")
    module = nn.ParameterDict({"y": nn.Parameter(torch.zeros(1, 2, 3))})
    load_weights(module, Source(tmp_path / "w.safetensors", lambda key: (Piece("y"),)))
    assert torch.equal(module["y"], torch.arange(6.0).view(1, 2, 3))


MEASURED = """
import json, sys, torch
from torch import nn
from timeviper_fast.checkpoint.weights import Source, load_weights

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
