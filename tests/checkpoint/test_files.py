"""Files of a checkpoint: paths, Hub ids, shards and their index, what is no weight file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.checkpoint.parts import Whole, meta, randomise
from tests.tiny import CONFIG
from timeviper_fast import TimeViper
from timeviper_fast.checkpoint.files import local_directory, weight_files
from timeviper_fast.checkpoint.load import load_pretrained, read_config
from timeviper_fast.checkpoint.save import save_pretrained
from timeviper_fast.checkpoint.weights import Source, load_weights
from timeviper_fast.errors import CheckpointError


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
    # what does not fit the config is found before any weights are downloaded
    asked.clear()
    with pytest.raises(ValueError, match="stages must be none"):
        TimeViper.from_pretrained("someone/timeviper", stages="hico")
    assert asked == [("someone/timeviper", ["*.json"])]


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
    for wrong in ("{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(wrong)
        with pytest.raises(CheckpointError, match="index must have a weight_map of names to files"):
            weight_files(tmp_path)
