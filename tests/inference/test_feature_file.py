"""A feature file stands for its video, with any LLM behind the same vision encoder."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace

import pytest
import torch

from timeviper_fast import TimeViper
from timeviper_fast.config import ProjectorConfig
from timeviper_fast.inference import feature_file
from timeviper_fast.inference.feature_file import Features, feature_misfit, is_feature_file
from timeviper_fast.inference.request import Opening
from timeviper_fast.inference.tensor_file import read_header
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.text.byte_tokenizer import byte_tokenizer

OPTIONS = {"chunk": 64, "frame_batch": 5}
FRAMES = {"policy": "fps:1", "start": "0:02"}


def same(one, two) -> bool:
    return replace(one, stops=()) == replace(two, stops=())


@pytest.fixture(scope="module")
def path(model, video, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "a"
    model.save_features(video, path, frame_batch=5, **FRAMES)
    return path


def test_the_file_answers_as_the_video(model, video, path):
    for stages in (None, "none"):
        one = model.open(path, stages=stages, **OPTIONS)
        two = model.open(video, stages=stages, **FRAMES, **OPTIONS)
        assert same(one.ask("Why?", max_new_tokens=4), two.ask("Why?", max_new_tokens=4))
        assert one.opening == two.opening
        first, second = vars(one.footage), vars(two.footage)
        assert torch.equal(first["seconds"], second["seconds"])
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert model.ask(path, "Why?", max_new_tokens=1, stages="none", **OPTIONS).text


@pytest.mark.parametrize("frames", [1, 3, 4])
@pytest.mark.parametrize("kind", ["tome_mlp", "gelu_mlp"])
def test_clips_and_images(frames, kind, video, tmp_path):
    """Copies of the last frame fill the last clip; a single frame is an image."""
    clips = ProjectorConfig(kind, 4, 1 if kind == "gelu_mlp" else 2)
    torch.manual_seed(0)
    model = TimeViper(replace(preset("tiny"), projector=clips), byte_tokenizer()).eval()
    init_weights(model.backbone, seed=0)
    pictures = torch.randint(0, 255, (frames, 40, 40, 3), dtype=torch.uint8)
    model.save_features(pictures, tmp_path / "a", policy=f"uniform:{frames}", frame_batch=2)
    options = {"frame_batch": 2, "stages": "none"}
    one = model.open(tmp_path / "a", **options).ask("Why?", max_new_tokens=2)
    two = model.open(pictures, policy=f"uniform:{frames}", **options)
    assert same(one, two.ask("Why?", max_new_tokens=2))


def test_its_size_is_that_of_the_merged_features(model, path):
    entries = read_header(path).entries
    config = model.config
    numbers = 10 * config.tokens_per_frame * config.vision.hidden_size
    assert entries["features"].nbytes == 4 * numbers
    assert os.path.getsize(path) < 4 * numbers + 4096


def test_another_llm_reads_it_and_another_encoder_does_not(model, path):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in (*other.backbone.parameters(), *other.projector.parameters()):
            weight.add_(0.01)
    assert other.open(path, **OPTIONS).ask("Why?", max_new_tokens=2).text
    with torch.no_grad():
        next(other.vision.parameters()).add_(0.01)
    with pytest.raises(ValueError, match=r"vision weights and merging must be [0-9a-f]{16}, got"):
        other.open(path)
    half = copy.deepcopy(model).bfloat16()
    with pytest.raises(ValueError, match="dtype must be bfloat16, got float32"):
        half.open(path)


def test_files_are_known_by_their_content(model, video, path, tmp_path):
    assert is_feature_file(path)
    assert is_feature_file(str(path))
    assert not is_feature_file(video)
    assert not is_feature_file(torch.zeros(1))
    whole = path.read_bytes()
    for change in (
        whole.replace(b'\\"notes\\"', b'\\"nates\\"'),
        whole.replace(b'"seconds":{"dtype":"F64"', b'"seconds":{"dtype":"I64"'),
        whole.replace(b'"format_version":"1"', b'"format_version":"2"'),
    ):
        assert change != whole
        (tmp_path / "b").write_bytes(change)
        with pytest.raises(ValueError, match=r"open: video .*b must "):
            model.open(tmp_path / "b")


def test_options_that_choose_frames_are_refused(model, path):
    for option in ({"policy": "fps:1"}, {"end": 3}, {"tiles": True}, {"on_error": "use"}):
        (name,) = option
        with pytest.raises(ValueError, match=f"{name} must be left out for a feature file"):
            model.open(path, **option)


def test_how_a_file_fits(model, video, path):
    header, size = read_header(path), os.path.getsize(video)
    fits = Opening(**FRAMES)
    assert feature_misfit(header, model, fits, size) is None
    assert feature_misfit(None, model, fits, size) == "a file that is damaged or of another kind"
    assert "end=None, not 3" in feature_misfit(header, model, replace(fits, end=3), size)
    assert "bytes" in feature_misfit(header, model, fits, 7)
    assert feature_misfit(header, copy.deepcopy(model).half(), fits, size) == "another dtype"


def test_existing_files_and_interruptions(model, video, path, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="overwrite=True replaces it"):
        model.save_features(video, path)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_file, "encode_video", stop)
    with pytest.raises(KeyboardInterrupt):
        model.save_features(video, tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_a_policy_of_ones_own_is_told(model, video, tmp_path):
    class Last:
        def choose(self, seconds, fps, duration):
            return torch.arange(len(seconds))[-2:]

        def __repr__(self):
            return "Last()"

    model.save_features(video, tmp_path / "a", policy=Last())
    assert json.loads(read_header(tmp_path / "a").texts["policy"]) == "Last()"
    assert len(Features(tmp_path / "a", model).seconds) == 2
    assert len(model.open(tmp_path / "a", stages="none").footage.seconds) == 2
