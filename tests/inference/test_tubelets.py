"""Videos whose patches hold two frames, at their own aspect: opened, asked, saved and streamed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from timeviper_fast import TimeViper
from timeviper_fast.config import CompressionStage, ProjectorConfig, VisionConfig
from timeviper_fast.inference.footage import Footage
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.text.byte_tokenizer import SPECIAL_TOKENS, byte_tokenizer

MARKS = ("<img>", "</img>", "<image>", "<|im_start|>", "<|im_end|>")
# 7 frames of 2 : 1; the fourth tubelet is filled up
FRAMES = torch.randint(
    0, 255, (7, 30, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
)
OPTIONS = {"policy": "uniform:7", "chunk": 32, "frame_batch": 4}


@pytest.fixture(scope="module")
def model() -> TimeViper:
    vision = VisionConfig(
        kind="radio",
        image_size=64,
        patch_size=8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        feature_layer=-1,
        resize="float_aspect",
        clip_frames=2,
        register_tokens=3,
        position_side=8,
    )
    config = replace(
        preset("tiny"),
        vision=vision,
        projector=ProjectorConfig(kind="pixel_shuffle_mlp", inner_size=48),
        stages=(CompressionStage(0, "content", 1.0, transfer=False, prune=0.5),),
        template="nemotron_omni",
    )
    model = TimeViper(config, tokenizer=byte_tokenizer((*SPECIAL_TOKENS, *MARKS)))
    init_weights(model, seed=2)
    return model.eval()


def test_a_video_is_encoded_at_its_aspect(model: TimeViper) -> None:
    """A square would have 64 patches; 2 : 1 gives 6 x 10 of them, 15 tokens per tubelet."""
    said = model.ask(FRAMES, "What moves?", max_new_tokens=3, **OPTIONS)
    assert len(said.frame_seconds) == 7
    assert (said.stages[0].before, said.stages[0].after) == (4 * 15, 30)
    assert model.config.vision.frame_grid is None
    portrait = model.ask(FRAMES.transpose(1, 2), "What moves?", max_new_tokens=3, **OPTIONS)
    assert portrait.stages[0].before == 4 * 15
    # the tokens of a tubelet have the second of the earlier one of its two frames
    assert set(said.kept_seconds) <= {0.0, 2.0, 4.0, 6.0}


def test_features_of_tubelets_answer_alike(model: TimeViper, tmp_path) -> None:
    model.save_features(FRAMES, tmp_path / "f.safetensors", policy="uniform:7", frame_batch=4)
    want = model.ask(FRAMES, "What moves?", max_new_tokens=4, **OPTIONS)
    got = model.ask(
        tmp_path / "f.safetensors", "What moves?", max_new_tokens=4, chunk=32, frame_batch=4
    )
    assert got.token_ids == want.token_ids
    assert got.kept_seconds == want.kept_seconds
    session = model.open(FRAMES, **OPTIONS)
    session.save(tmp_path / "s.safetensors")
    again = model.load_session(tmp_path / "s.safetensors")
    assert again.ask("What moves?", max_new_tokens=4).token_ids == want.token_ids
    assert again.footage.tubelet == 2


def test_a_stream_needs_to_know_the_size_and_is_the_video(model: TimeViper) -> None:
    with pytest.raises(ValueError, match="frame_grid must be known where frames keep their aspect"):
        model.stream(frames=7)
    seen = model.seeing(*FRAMES.shape[1:3])
    assert isinstance(seen, TimeViper)
    stream = seen.stream(frames=7, chunk=32, frame_batch=4)
    for part in FRAMES.split(3):
        stream.push(part)
    want = model.ask(FRAMES, "What moves?", max_new_tokens=4, **OPTIONS)
    got = stream.ask("What moves?", max_new_tokens=4)
    assert got.token_ids == want.token_ids
    assert got.kept_seconds == want.kept_seconds


def test_a_bounded_stream_forgets_whole_tubelets(model: TimeViper) -> None:
    plain = model.with_stages(()).seeing(*FRAMES.shape[1:3])
    stream = plain.stream(bounded="window:3s", frame_batch=2, chunk=8)
    for part in FRAMES[:6].split(2):
        stream.push(part)
    said = stream.ask("What moves?", max_new_tokens=2)
    assert said.frame_seconds == (2.0, 3.0, 4.0, 5.0)
    assert len(said.kept_seconds) == 2 * 15


def test_tokens_of_a_tubelet_are_shared_out() -> None:
    footage = Footage("x", torch.arange(4.0), 4.0, 9, clip=2, tubelet=2)
    assert footage.counts(18) == [4, 5, 4, 5]
    assert footage.token_seconds(18).tolist() == [0.0] * 9 + [2.0] * 9
