"""Saving: a checkpoint is written whole or not at all, and nothing of the user's is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import nn

from tests.checkpoint.parts import Whole, meta, randomise
from tests.tiny import CONFIG
from timeviper_fast.checkpoint.files import weight_files
from timeviper_fast.checkpoint.save import save_pretrained
from timeviper_fast.errors import CheckpointError
from timeviper_fast.text.byte_tokenizer import byte_tokenizer


def test_files_may_be_read_by_whom_the_directory_may(tmp_path):
    target = save_pretrained(nn.Linear(2, 2), CONFIG, None, tmp_path / "m")
    modes = {path.name: path.stat().st_mode & 0o777 for path in target.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == target.stat().st_mode & 0o666


def test_what_is_there_is_not_overwritten_by_accident(tmp_path):
    target = tmp_path / "m"
    save_pretrained(nn.Linear(2, 2), CONFIG, None, target)
    with pytest.raises(CheckpointError, match="directory must be new or empty, got"):
        save_pretrained(nn.Linear(2, 3), CONFIG, None, target)
    for value in ("no", 1, None):
        with pytest.raises(CheckpointError, match="overwrite must be True or False, got"):
            save_pretrained(nn.Linear(2, 3), CONFIG, None, target, overwrite=value)
    save_pretrained(nn.Linear(2, 3), CONFIG, None, target, overwrite=True)
    assert load_file(target / "model.safetensors")["weight"].shape == (3, 2)


def test_what_others_put_there_stays(tmp_path):
    """A model with shards and a tokenizer is overwritten by one with a single file and no tokenizer."""
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
