"""The embedded model: its id means the files of the package, never the network or a directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from timeviper_fast import TimeViper
from timeviper_fast.checkpoint.files import local_directory
from timeviper_fast.checkpoint.load import read_config
from timeviper_fast.embedded.models import TINY, TINY_NOTE, embedded_directory
from timeviper_fast.errors import CheckpointError
from timeviper_fast.presets import preset
from timeviper_fast.synthetic.needle import Needle
from timeviper_fast.synthetic.world import World
from timeviper_fast.training.start import first_config, initial_model

# the hub is on, and every try to reach it is noted
ALONE = """
import socket
tried = []
class Refused(socket.socket):
    def __init__(self, *args, **kwargs):
        tried.append("socket")
        raise OSError("no network")
def lookup(*args, **kwargs):
    tried.append(args)
    raise OSError("no network")
socket.socket, socket.getaddrinfo = Refused, lookup
from timeviper_fast import TimeViper
import huggingface_hub
huggingface_hub.snapshot_download = huggingface_hub.hf_hub_download = lookup
model = TimeViper.from_pretrained("timeviper-fast/tiny")
print(model.note, len(model.tokenizer), tried)
"""


def test_the_id_is_a_folder_of_the_package():
    folder = embedded_directory(TINY)
    assert local_directory(TINY) == local_directory(Path(TINY)) == folder
    assert (folder / "model.safetensors").is_file()
    for other in ("timeviper-fast/Tiny", "timeviper-fast", "./timeviper-fast/tiny", "", None, 5):
        assert embedded_directory(other) is None


def test_it_is_what_train_tiny_trains():
    assert read_config(TINY).backbone == preset("tiny-trained").backbone
    assert first_config(TINY) == read_config(TINY)
    model = initial_model(TINY)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_it_never_asks_the_network(tmp_path):
    online = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=tmp_path,
        env={**online, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(TINY_NOTE)
    assert done.stdout.endswith(" []\n")
    assert list(tmp_path.rglob("*")) == []


def test_a_directory_of_that_name_is_meant_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = r"directory must be another than the id of the embedded model, got timeviper-fast/tiny"
    model = TimeViper.from_pretrained(TINY)
    with pytest.raises(CheckpointError, match=words):
        model.save_pretrained(TINY)
    model.save_pretrained(tmp_path / TINY)
    path = tmp_path / TINY / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "template": "qwen2"}))
    assert read_config(TINY).template == "nano_base"
    assert read_config(f"./{TINY}").template == read_config(tmp_path / TINY).template == "qwen2"


def test_a_single_sign_is_read_without_stages_and_is_said_to_be_lost_with_them():
    model = TimeViper.from_pretrained(TINY)
    sign = World(77).render([0], [Needle("sign", "B5")], 48)
    whole = model.ask(sign, "What does the sign say?", stages="none")
    assert (whole.text, len(whole.kept_seconds), whole.notes) == ("B5", 4, ())
    lost = model.ask(sign, "What does the sign say?")
    assert lost.kept_seconds == ()
    (note,) = lost.notes
    assert note.startswith("No vision token was left: 1 frame is too few for these stages; ")
    assert 'stages="none"' in note


def test_an_answer_of_it_says_what_it_knows():
    model = TimeViper.from_pretrained(TINY)
    frames = torch.zeros(2, 48, 48, 3, dtype=torch.uint8)
    assert model.ask(frames, "What?", max_new_tokens=1).to_dict()["model_note"] == TINY_NOTE
    other = TimeViper(model.config, model.tokenizer).eval()
    other.load_state_dict(model.state_dict())
    assert other.ask(frames, "What?", max_new_tokens=1).model_note == ""
