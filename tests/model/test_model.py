"""TimeViper end to end: upstream's generate on features, and `ask` on real video files."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from tests.model.goldens import TINY, TRANSV, golden, tiny_backbone
from timeviper_fast import Sampling, TimeViper, TimeViperConfig
from timeviper_fast.config import ProjectorConfig, VisionConfig
from timeviper_fast.demo import tiny_model, write_demo_video
from timeviper_fast.stops import STOPS
from timeviper_fast.video import open_video


def upstream_model() -> tuple[TimeViper, dict[str, torch.Tensor]]:
    data = golden("vlm_generate")
    vision = VisionConfig(
        image_size=70,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = TimeViper(TimeViperConfig(TINY, vision, ProjectorConfig("tome_mlp", 4), TRANSV))
    model.backbone = tiny_backbone(TRANSV)
    weights = {n.split(".", 2)[2]: t for n, t in data.items() if n.startswith("projector.")}
    model.projector.layers.load_state_dict(weights)
    return model.eval(), data


@pytest.mark.parametrize("chunk", [None, 17])
def test_upstream_generate(chunk):
    model, data = upstream_model()
    ids = data["input_ids"]
    [places] = (ids[0] == 100).nonzero(as_tuple=True)
    first, last = int(places[0]), int(places[-1])
    before = ids[:, :first]
    after = torch.cat([ids[:, last + 1 :], data["answer_prompt_ids"][None]], dim=1)
    with torch.no_grad():
        visual = model.projector(data["features"])
        torch.testing.assert_close(visual, data["visual_embeddings"], rtol=0, atol=1e-5)
        embeddings, _ = model.embed(before, visual, after)
        torch.testing.assert_close(embeddings, data["fused_embeddings"], rtol=0, atol=1e-5)
    result = model.generate(before, visual, after, max_new_tokens=6, chunk=chunk)
    assert torch.equal(result.token_ids[0].int(), data["generated"])
    assert [(s.before, s.after) for s in result.stages] == [(48, 24), (24, 9)]
    kept = data["stage0.kept"][data["stage1.kept"]]
    assert torch.equal(result.kept[0].int(), kept)


@pytest.fixture(scope="module")
def model() -> TimeViper:
    return tiny_model()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "demo.mp4"
    return write_demo_video(path, seconds=12, fps=10, height=64, width=96)


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
    embed = type(model).embed

    def listen(self, before, visual, after):
        prompts.append(model.tokenizer.decode(torch.cat([before[0], after[0]])))
        return embed(self, before, visual, after)

    monkeypatch.setattr(type(model), "embed", listen)
    model.ask(video, turns, policy="uniform:8", max_new_tokens=1, mention_duration=True)
    [text] = prompts
    assert (
        "The video lasts for 12.0 seconds, and 8 frames are uniformly sampled from it. What" in text
    )
    assert text.index("What moves?") < text.index("A square.") < text.index("Where to?")


def test_eos_of_the_config_ends_an_answer(model, video):
    free = model.ask(video, "What?", policy="uniform:4", max_new_tokens=6)
    last = free.token_ids[2]
    config = replace(model.config.backbone, eos_token_ids=(256, last))
    stopping = TimeViper(replace(model.config, backbone=config), model.tokenizer).eval()
    stopping.load_state_dict(model.state_dict())
    answer = stopping.ask(video, "What?", policy="uniform:4", max_new_tokens=6)
    assert answer.finish == "stop"
    assert answer.token_ids == free.token_ids[: free.token_ids.index(last) + 1]


@pytest.mark.parametrize(
    ("before", "visual", "after", "words"),
    [
        (torch.zeros(1, 2), None, torch.zeros(1, 2).int(), r"before must be a tensor \(batch, n\)"),
        (torch.zeros(2).int(), None, torch.zeros(1, 2).int(), r"before must be a tensor \(batch"),
        (torch.zeros(2, 2).int(), None, torch.zeros(1, 2).int(), r"batch of before \(2\), got 1"),
        (
            torch.full((1, 2), 320),
            None,
            torch.zeros(1, 2).int(),
            r"before must lie in 0 .. 319, got 320 .. 320",
        ),
        (
            torch.zeros(1, 2).int(),
            None,
            torch.tensor([[5, -1]]),
            r"after must lie in 0 .. 319, got -1 .. 5",
        ),
        (
            torch.zeros(1, 2).int(),
            torch.zeros(4, 16, 128).double(),
            torch.zeros(1, 2).int(),
            r"visual must be of dtype torch.float32, got torch.float64",
        ),
        (
            torch.zeros(1, 2).int(),
            torch.zeros(4, 16, 64),
            torch.zeros(1, 2).int(),
            r"visual must be a tensor \(frames, n, 128\), got \(4, 16, 64\) torch.float32",
        ),
        (
            [[1]],
            None,
            torch.zeros(1, 2).int(),
            r"before must be a tensor \(batch, n\) .*, got list",
        ),
        (torch.zeros(1, 2).int(), None, None, "after must be a tensor .*, got NoneType"),
        (
            torch.zeros(1, 2).int(),
            [1],
            torch.zeros(1, 2).int(),
            "visual must be a tensor .*, got list",
        ),
    ],
)
def test_generate_checks_its_tensors(model, before, visual, after, words):
    with pytest.raises(ValueError, match=words):
        model.generate(before, visual, after, max_new_tokens=1)


def test_generate_wants_room_for_a_token(model):
    ids = torch.zeros(1, 2, dtype=torch.long)
    for wrong in (0, 2.5, True):
        words = f"max_new_tokens must be an integer of 1 or more, got {wrong}"
        with pytest.raises(ValueError, match=words):
            model.generate(ids, None, ids, max_new_tokens=wrong)


def test_generate_wants_a_sampling_or_nothing(model):
    ids = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"sampling must be a Sampling or None, got \{\}"):
        model.generate(ids, None, ids, sampling={})


@pytest.mark.parametrize("wrong", [5, None, "ab", [1.5], [-1], [320], [2**70], torch.tensor([1])])
def test_generate_stops_at_tokens_of_its_vocabulary(model, wrong, monkeypatch):
    monkeypatch.setattr(model, "embed", lambda *_: pytest.fail("the prompt is read"))
    ids = torch.zeros(1, 2, dtype=torch.long)
    words = f"stop_ids must be a collection of token ids in 0 .. 319, got {re.escape(repr(wrong))}"
    with pytest.raises(ValueError, match=words):
        model.generate(ids, None, ids, stop_ids=wrong)


def test_a_tokenizer_that_ends_with_a_stranger(video):
    """Every token of the prompt is in the vocabulary, the one that ends an answer is not."""
    config = tiny_model().config
    model = TimeViper(replace(config, backbone=replace(config.backbone, vocab_size=263)))
    model.tokenizer = tiny_model().tokenizer
    model.tokenizer.eos_token = "<video>"
    words = r"ids below the model's vocabulary size \(263\), got 263; they belong to different"
    with pytest.raises(ValueError, match=words):
        model.ask(video, "What?")


@pytest.mark.parametrize("config", ["tiny", None, {}])
def test_a_model_is_made_of_a_config(config):
    with pytest.raises(ValueError, match=r"config must be a TimeViperConfig, got .*; preset"):
        TimeViper(config)


@pytest.mark.parametrize("device", ["xpu", "mps", "meta", "cpu:1", "gpu", 2.5])
def test_what_is_no_device_of_the_model(tmp_path, device):
    with pytest.raises(ValueError, match=f"^device must be cpu, cuda or cuda:N, got '{device}'$"):
        TimeViper.from_pretrained(tmp_path, device=device)


@pytest.mark.parametrize("path", [None, 5, True, b"model", [], "a\0b", "a" * 5000, "~no one/model"])
def test_what_is_no_path_of_a_model(model, path):
    value = re.escape(repr(path))
    with pytest.raises(ValueError, match=f"^checkpoint: path must be a usable path, got {value} "):
        TimeViper.from_pretrained(path)
    words = f"^save_pretrained: directory must be a usable path, got {value} "
    with pytest.raises(ValueError, match=words):
        model.save_pretrained(path)


def test_progress_is_a_function(model, tmp_path):
    with pytest.raises(ValueError, match=r"^from_pretrained: progress must be a function"):
        TimeViper.from_pretrained(tmp_path, progress=5)
    with pytest.raises(ValueError, match=r"^save_pretrained: progress must be a function"):
        model.save_pretrained(tmp_path / "new", progress=5)
    assert not (tmp_path / "new").exists()


def test_an_interrupted_answer_leaves_no_trace(model, video):
    """And several questions may be asked of one opened video, also after one went wrong."""
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


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"question": "  "}, "question must not be empty or blank"),
        ({"policy": "every:3"}, "policy"),
        ({"policy": 5}, "policy must be a string as 'fps:1', or an object that can choose, got 5"),
        ({"sampling": {}}, r"sampling must be a Sampling or None, got \{\}"),
        ({"max_new_tokens": True}, "max_new_tokens must be a positive number of tokens, got True"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a positive number of tokens, got 2.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive number of tokens, got 0"),
        ({"chunk": 0}, "chunk must be a positive number of tokens, got 0"),
        ({"frame_batch": 0}, "frame_batch must be a positive number of frames, got 0"),
        ({"on_error": "ignore"}, "on_error"),
        ({"answer_prefix": 3}, "answer_prefix must be valid UTF-8 text, got 3"),
        ({"on_text": 5}, "ask: on_text must be a function or None, got 5"),
        ({"progress": 5}, "ask: progress must be a function or None, got 5"),
        ({"max_new_tokens": 400_000}, "must fit the model's window of 262144 tokens"),
    ],
)
def test_mistakes_are_one_sentence_before_any_frame_is_encoded(model, video, kwargs, words):
    seen: list[tuple] = []
    arguments = {"question": "What?", "progress": lambda *step: seen.append(step), **kwargs}
    with pytest.raises(ValueError, match=words):
        model.ask(video, **arguments)
    assert not seen


def test_a_demo_video_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r"write_demo_video: .* got 0 s, 24 fps, 360 x 640"):
        write_demo_video(tmp_path / "demo.mp4", seconds=0)


def test_a_model_without_tokenizer_says_so(video):
    with pytest.raises(
        ValueError, match=r"ask: model must have a tokenizer, got None; set model\.tokenizer"
    ):
        TimeViper(tiny_model().config).ask(video, "What?")


def test_save_and_load_give_the_same_answer(model, video, tmp_path):
    truth = model.ask(video, "What moves?", max_new_tokens=6)
    model.save_pretrained(tmp_path / "tiny")
    loaded = TimeViper.from_pretrained(tmp_path / "tiny", device="cpu")
    assert loaded.dtype == torch.float32
    assert loaded.ask(video, "What moves?", max_new_tokens=6).token_ids == truth.token_ids
    half = TimeViper.from_pretrained(tmp_path / "tiny", device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.ask(video, "What moves?", max_new_tokens=2).text is not None
