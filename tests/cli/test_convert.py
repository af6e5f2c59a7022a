"""The command convert: one directory of upstream's parts, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext

import pytest
import torch

from tests.checkpoint.parts import assert_same, llm_directory, siglip_tower, vlm_state
from tests.cli.common import one_line
from tests.tiny import TRANSV, tiny_backbone
from timeviper_fast import TimeViper
from timeviper_fast.checkpoint import upstream
from timeviper_fast.cli import terminal
from timeviper_fast.text.byte_tokenizer import byte_tokenizer


def test_what_convert_cannot_take(run, home, tmp_path):
    one_line(
        run("convert", tmp_path / "new", "--llm", home / "model"),
        "--llm must be the language model's Hugging Face directory",
        f"got {home / 'model'}, a timeviper_fast checkpoint already",
    )
    llm = llm_directory(tmp_path / "llm")
    one_line(
        run("convert", tmp_path / "new", "--llm", llm, "--merge", "no_merge"),
        "--merge must be left out without pdrop (config.json has its own), got no_merge",
    )
    assert os.listdir(tmp_path) == ["llm"]


@pytest.mark.parametrize("parent", ["file", "/proc"])
def test_convert_knows_first_whether_it_can_write(run, tmp_path, monkeypatch, parent):
    if parent == "/proc" and not os.path.isdir(parent):
        pytest.skip("a directory where nobody can write")
    (tmp_path / "file").touch()
    monkeypatch.setattr(upstream, "upstream_config", lambda *_, **__: pytest.fail("read"))
    target = os.path.join(tmp_path, parent, "new")
    one_line(
        run("convert", target, "--llm", tmp_path),
        f"directory must be one that can be written ({os.path.dirname(target)}: ",
        f"got {target}",
    )
    assert os.listdir(tmp_path) == ["file"]


def test_converting_onto_something_else(run, home, tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    one_line(run("convert", tmp_path, "--llm", home / "model"), "directory must be new or empty")
    assert os.listdir(tmp_path) == ["precious.txt"]


def test_convert_says_what_it_takes(run):
    code, out, _ = run("convert", "--help")
    words = " ".join(out.split())
    assert code == 0
    assert "Upstream's id of the vision backbone, or a SigLIP directory." in words
    assert "Of the weights written. [default: bfloat16]" in words


def test_convert_makes_one_directory_of_upstreams_parts(run, home, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(
        terminal, "progress_bars", lambda *_, **__: nullcontext(lambda *step: steps.append(step))
    )
    llm = llm_directory(tmp_path / "llm", merge=False)
    byte_tokenizer().save_pretrained(llm)
    torch.save(vlm_state(), tmp_path / "vlm.bin")
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(siglip_tower().config.to_dict()))
    code, _, err = run(
        "convert", tmp_path / "model", "--llm", llm, "--vlm", tmp_path / "vlm.bin",
        "--vision", tower, "--arch", "tome_mlp-4", "--pdrop", "uni_5_0.5-attn_8_0.2",
        "--dtype", "float32",
    )  # fmt: skip
    assert code == 0, err
    assert {name for name, done, total in steps if done == total > 0} == {"read", "written"}
    code, out, _ = run("info", tmp_path / "model", "--json")
    facts = json.loads(out)
    assert facts["tokens_per_frame"] == 4
    assert facts["stages"].endswith("before layer 8: attention, keep 0.2, transfer")
    model = TimeViper.from_pretrained(tmp_path / "model", device="cpu")
    assert_same(model.backbone, dict(tiny_backbone(TRANSV).state_dict()))
    # the parts do not fit: the recorded model has 97 tokens, the byte tokenizer 256
    ask = ("ask", home / "video.mp4", "What?", "--model", tmp_path / "model")
    one_line(run(*ask), "tokenizer must give ids below the model's vocabulary size (97), got")
