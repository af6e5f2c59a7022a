"""ask on real video files: every stop, repeats, conversations, stop tokens, interruptions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.random_model import tiny_model
from timeviper_fast import Sampling, TimeViper
from timeviper_fast.config import ProjectorConfig
from timeviper_fast.inference.session import Session
from timeviper_fast.stops import STOPS
from timeviper_fast.video import open_video


def test_ask_walks_through_every_stop(model, video):
    heard: list[str] = []
    done: list[tuple[str, int, int]] = []
    answer = model.ask(
        video,
        "What moves?",
        max_new_tokens=8,
        frame_batch=5,
        on_text=heard.append,
        progress=lambda *step: done.append(step),
    )
    assert answer.frame_seconds == pytest.approx([float(i) for i in range(12)], abs=0.051)
    assert [(s.layer, s.before, s.after) for s in answer.stages] == [(2, 192, 96), (8, 96, 19)]
    assert len(answer.kept_seconds) == 19
    assert set(answer.kept_seconds) <= set(answer.frame_seconds)
    assert list(answer.kept_seconds) == sorted(answer.kept_seconds)
    assert [s.name for s in answer.stops if ":" not in s.name] == list(STOPS)
    assert sum(":" in s.name for s in answer.stops) == 2
    assert all(s.milliseconds > 0 and s.peak_bytes > 0 for s in answer.stops)
    by_name = {s.name: s for s in answer.stops}
    assert by_name["vision"].shape == "12 x 49 x 64"
    assert by_name["merge"].shape == "12 x 16 x 64"
    assert by_name["project"].shape == "12 x 16 x 128"
    assert by_name["merge"].tokens == "192"
    assert "".join(heard).strip() == answer.text
    assert ("frames", 12, 12) in done
    assert len(answer.token_ids) <= 8
    assert answer.finish in ("stop", "length")
    assert json.loads(json.dumps(answer.to_dict()))["stages"][0]["layer"] == 2


def test_other_stages_for_one_question(model, video):
    """Before layers of a Mamba-2 hybrid; attention scores the residual stream. No weights of
    stages take part, and the model's own stages serve the next question."""
    own = model.config.stages
    words = "uniform:2:0.5,attention:8:0.1:raw"
    answer = model.ask(video, "What moves?", max_new_tokens=4, stages=words)
    assert [(s.layer, s.before, s.after) for s in answer.stages] == [(2, 192, 96), (8, 96, 19)]
    drops = tuple(replace(stage, transfer=False) for stage in own)
    assert {stage.score for stage in drops} == {"raw"}
    same = model.ask(video, "What moves?", max_new_tokens=4, stages=drops)
    assert (same.token_ids, same.kept_seconds) == (answer.token_ids, answer.kept_seconds)
    assert model.config.stages == own
    assert model.backbone.stages == own


def test_batches_and_chunks_do_not_change_the_answer(model, video):
    one = model.ask(video, "What moves?", max_new_tokens=8, frame_batch=64, chunk=None)
    two = model.ask(video, "What moves?", max_new_tokens=8, frame_batch=3, chunk=50)
    assert one.token_ids == two.token_ids
    assert one.kept_seconds == two.kept_seconds


def test_ask_equals_generate_on_the_same_frames(model, video):
    from timeviper_fast.text.prompt import build_prompt, stop_token_ids
    from timeviper_fast.video import read_video
    from timeviper_fast.video.preprocess import resize_normalize

    answer = model.ask(video, "What moves?", max_new_tokens=8, answer_prefix="It is")
    frames = read_video(video, "fps:1")
    vision = model.config.vision
    pixels = resize_normalize(frames.rgb, vision.image_size, vision.image_mean, vision.image_std)
    prompt = build_prompt(model.tokenizer, "What moves?", answer_prefix="It is")
    result = model.generate(
        torch.tensor([prompt.before]),
        model.encode(pixels),
        torch.tensor([prompt.after]),
        max_new_tokens=8,
        stop_ids=stop_token_ids(model.tokenizer, "nano_base"),
    )
    assert tuple(result.token_ids[0].tolist()) == answer.token_ids


def test_sampling_repeats_with_its_seed(model, video):
    sampling = Sampling(temperature=2.0, seed=11)
    draws = [model.ask(video, "What?", max_new_tokens=8, sampling=sampling) for _ in range(2)]
    assert draws[0].token_ids == draws[1].token_ids
    other = model.ask(video, "What?", max_new_tokens=8, sampling=replace(sampling, seed=12))
    assert other.token_ids != draws[0].token_ids


def test_a_stop_token_ends_the_answer(model, video):
    free = model.ask(video, "What?", policy="uniform:4", max_new_tokens=6)
    assert free.finish == "length"
    assert len(free.token_ids) == 6
    stopping = tiny_model()
    last = next(i for i in free.token_ids if i < 256)  # a byte; ids from 264 on mean nothing
    stopping.tokenizer.eos_token = stopping.tokenizer.convert_ids_to_tokens(last)
    answer = stopping.ask(video, "What?", policy="uniform:4", max_new_tokens=6)
    assert answer.finish == "stop"
    assert answer.token_ids == free.token_ids[: free.token_ids.index(last) + 1]


def test_a_conversation_and_a_duration_reach_the_prompt(model, video, monkeypatch):
    turns = [
        {"role": "user", "content": "What moves?"},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": "Where to?"},
    ]
    prompts = []
    made = Session.prompt

    def listen(self, question):
        prompt = made(self, question)
        prompts.append(model.tokenizer.decode(prompt.before + prompt.after))
        return prompt

    monkeypatch.setattr(Session, "prompt", listen)
    model.ask(video, turns, policy="uniform:8", max_new_tokens=1, mention_duration=True)
    [text] = prompts
    assert (
        "The video lasts for 12.0 seconds, and 8 frames are uniformly sampled from it. What" in text
    )
    assert text.index("What moves?") < text.index("A square.") < text.index("Where to?")


def test_a_tokenizer_that_ends_with_a_stranger(video):
    """The prompt's tokens are in the vocabulary, but the token that ends an answer is not."""
    config = tiny_model().config
    model = TimeViper(replace(config, backbone=replace(config.backbone, vocab_size=263)))
    model.tokenizer = tiny_model().tokenizer
    model.tokenizer.eos_token = "<video>"
    words = r"ids below the model's vocabulary size \(263\), got 263; they belong to different"
    with pytest.raises(ValueError, match=words):
        model.ask(video, "What?")


def test_an_interrupted_answer_leaves_no_trace(model, video):
    """Further questions about the same opened video still work after an interrupted one."""
    truth = model.ask(video, "What?", max_new_tokens=4).token_ids

    def interrupt(text):
        raise KeyboardInterrupt

    with open_video(video) as opened:
        with pytest.raises(KeyboardInterrupt):
            model.ask(opened, "What?", max_new_tokens=4, on_text=interrupt)
        assert model.ask(opened, "What?", max_new_tokens=4).token_ids == truth
        model.ask(opened, "Where to?", policy="uniform:3", max_new_tokens=2)
        assert model.ask(opened, "What?", max_new_tokens=4).token_ids == truth


def test_clips_of_four_frames_are_filled(video):
    config = tiny_model().config
    clips = TimeViper(replace(config, projector=ProjectorConfig(num_tokens=16, clip_frames=4)))
    clips.load_state_dict(tiny_model().state_dict())
    clips.tokenizer = tiny_model().tokenizer
    answer = clips.eval().ask(video, "What?", policy="uniform:6", frame_batch=3, max_new_tokens=2)
    assert len(answer.frame_seconds) == 6
    assert answer.stages[0].before == 8 * 16
    assert set(answer.kept_seconds) <= set(answer.frame_seconds)
    assert answer.notes == (
        "To fill clips of 4 frames, the video ends with 2 copies of its last frame.",
    )
    # the middle frame of four, and of the two that are no copies
    seconds = answer.frame_seconds
    assert set(answer.kept_seconds) == {seconds[1], seconds[4]}
    picture = clips.ask(video, "What?", policy="uniform:1", max_new_tokens=1)
    assert picture.stages[0].before == 16
    assert picture.notes == ()


def test_a_model_without_tokenizer_says_so(video):
    with pytest.raises(
        ValueError, match=r"ask: model must have a tokenizer, got None; set model\.tokenizer"
    ):
        TimeViper(tiny_model().config).ask(video, "What?")


def test_start_and_end_limit_what_is_looked_at(model, video):
    """The times of the answer stay those of the whole video; the model is told of the part."""
    whole = model.ask(video, "What?", max_new_tokens=1)
    part = model.ask(video, "What?", max_new_tokens=1, start=3, end="0:07", mention_duration=True)
    assert whole.frame_seconds == tuple(range(12))
    assert part.frame_seconds == (3, 4, 5, 6)
    assert set(part.kept_seconds) <= {3, 4, 5, 6}
    said = "The video lasts for 4.0 seconds, and 4 frames are uniformly sampled from it. "
    prompts = [stop.tokens for stop in part.stops if stop.name == "prompt"]
    silent = model.ask(video, f"{said}What?", max_new_tokens=1, start=3, end=7)
    assert prompts == [stop.tokens for stop in silent.stops if stop.name == "prompt"]
