"""Rows become samples: frames, conversation, sentence and span; `cost` agrees with `load`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.dataset.common import VISION, film, jsonl, talk, turns
from tests.tiny import CONFIG
from timeviper_fast.dataset import conversation
from timeviper_fast.dataset.conversation import ConversationSource, TextCounter
from timeviper_fast.dataset.features import FeatureCache, encode_features
from timeviper_fast.dataset.frames import Sampling
from timeviper_fast.dataset.rows import Rows
from timeviper_fast.dataset.sample import Cost, Draw, Limits
from timeviper_fast.errors import ArgumentError, DataError
from timeviper_fast.inference.encode import encode_video
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stops import StopWatch
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.text.prompt import training_prompt, vision_preface
from timeviper_fast.video import open_video

TOKENIZER = byte_tokenizer()
COUNT = TextCounter(TOKENIZER)
DRAW = Draw(0, 0, 5)
TALK = {"conversations": talk("What?", "That.")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 lasts for 4 seconds of 8 frames, b.mp4 for one second and a half; c.png is a picture."""
    folder = tmp_path_factory.mktemp("films")
    film(folder / "a.mp4", 8)
    film(folder / "b.mp4", 3, grey=100)
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(folder / "c.png")
    return folder


def source(home: Path, *rows: dict[str, Any], **options: Any) -> ConversationSource:
    path = jsonl(home / "rows.jsonl", rows)
    return ConversationSource("test", Rows(path), VISION, COUNT, **options)


def levels(sample: Any) -> list[int]:
    """Grey level of each frame, divided by 8."""
    return [round(float((frame.mean() * 0.5 + 0.5) * 255) / 8) for frame in sample.pixels]


def agrees(made: ConversationSource, index: int, draw: Draw = DRAW) -> Any:
    """Load a sample and check it against its cost."""
    cost, sample = made.cost(index, draw), made.load(index, draw)
    prompt = training_prompt(
        TOKENIZER,
        sample.messages,
        vision=sample.frames > 0,
        preface=sample.preface,
        placeholder=sample.placeholder,
    )
    assert cost == Cost(sample.frames, prompt.length(0))
    return sample


def test_a_video_and_its_conversation(home: Path) -> None:
    made = source(
        home, {"video": "a.mp4", "conversations": talk("<image>\nWhat?", "That.", "Why?", "So.")}
    )
    sample = agrees(made, 0)
    assert sample.messages == turns("What?", "That.", "Why?", "So.")
    assert sample.pixels.shape == (4, 3, 16, 16)
    # one frame from the middle of each second
    assert sample.seconds == (0.5, 1.5, 2.5, 3.5)
    assert levels(sample) == [1, 3, 5, 7]
    assert (sample.name, sample.preface, sample.placeholder, sample.needed) == (
        "test:0",
        "",
        None,
        (),
    )


def test_limits_of_a_phase(home: Path) -> None:
    made = source(home, {"video": "a.mp4", **TALK})
    few = made.limits(Limits(1, 2, 8))
    assert agrees(few, 0).pixels.shape == (2, 3, 8, 8)
    assert agrees(made, 0).frames == 4
    assert few.limits(Limits(8, 8)).cost(0, DRAW).frames == 8
    clips = source(home, {"video": "b.mp4", **TALK}, sampling=Sampling(clip_frames=4))
    filled = agrees(clips, 0)
    assert filled.seconds == (0.0, 0.5, 1.0, 1.0)
    assert torch.equal(filled.pixels[2], filled.pixels[3])
    with pytest.raises(
        ArgumentError, match=r"max_frames must allow a whole clip \(4 frames\), got 2"
    ):
        clips.limits(Limits(1, 2))


def test_a_part_a_mark_and_the_sentence(home: Path) -> None:
    row = {
        "video": "a.mp4",
        "start": 1,
        "end": 3,
        "conversations": talk("See <video> here?", "Yes."),
    }
    sample = agrees(source(home, row, mention_duration=True), 0)
    assert sample.seconds == (1.5, 2.5)
    assert levels(sample) == [3, 5]
    assert (
        sample.preface
        == "The video lasts for 2.0 seconds, and 2 frames are uniformly sampled from it. "
    )
    assert sample.placeholder == "<video>"
    flash = source(home, row, mention_duration=True, template="qwen_2")
    assert flash.load(0, DRAW).preface == vision_preface("qwen_2", 2.0, 2)


def test_pictures_and_text_beside_videos(home: Path) -> None:
    made = source(home, {"image": "c.png", **TALK}, TALK, mention_duration=True)
    picture, text = agrees(made, 0), agrees(made, 1)
    assert (picture.frames, picture.preface, levels(picture)) == (1, "", [25])
    assert (text.frames, text.vision, text.messages) == (0, None, turns("What?", "That."))
    clips = source(home, {"image": "c.png", **TALK}, sampling=Sampling(clip_frames=4))
    # an image is no clip of four copies
    assert agrees(clips, 0).frames == 1


def test_captions_are_asked_for_by_the_draws_seed(home: Path) -> None:
    made = source(home, {"video": "a.mp4", "caption": "A wall."}, kind="caption")
    samples = [agrees(made, 0, Draw(0, 0, seed)) for seed in range(12)]
    assert len({sample.messages[0]["content"] for sample in samples}) > 3
    assert {sample.messages[1]["content"] for sample in samples} == {"A wall."}
    assert samples[3].messages == made.load(0, Draw(9, 9, 3)).messages


def test_jitter_follows_the_seed(home: Path) -> None:
    made = source(home, {"video": "a.mp4", **TALK}, sampling=Sampling("fps:1", jitter=True))
    seen = {agrees(made, 0, Draw(0, 0, seed)).seconds for seed in range(8)}
    assert len(seen) > 3
    assert made.load(0, Draw(1, 2, 3)).seconds == made.load(0, Draw(0, 0, 3)).seconds


def test_grounding_rows_that_no_frame_shows_are_left_out_before_drawing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"video": "a.mp4", "span": span, "caption": f"Row {i}."}
        for i, span in enumerate([[0.4, 0.6], [0.6, 1.4], [2, 4], [3.6, 4]])
    ]
    made = source(home, *rows, {"video": "none.mp4", "span": [0, 1], **TALK}, kind="grounding")
    with monkeypatch.context() as patch:
        patch.setattr(conversation, "open_video", None)  # nothing is decoded
        assert (len(made), list(made.rows), made.filtered) == (3, [0, 2, 4], 2)
    sample = agrees(made, 1)
    assert (sample.seconds, sample.needed) == ((0.5, 1.5, 2.5, 3.5), (2, 3))
    assert sample.preface.startswith("The video lasts for 4.0 seconds, and 4 frames")
    assert sample.messages[1]["content"] == "From 2.0 to 4.0 seconds."
    assert sample.name == "test:2"
    # more frames show more spans, fewer show fewer
    assert (list(made.limits(Limits(8, 8)).rows), made.filtered) == ([0, 1, 2, 4], 2)
    assert (list(made.limits(Limits(1, 1)).rows), made.filtered) == ([2, 4], 2)
    with pytest.raises(DataError, match=r"rows.jsonl:5: .*none.mp4: no such file"):
        made.load(2, DRAW)


def test_rows_that_are_left_out(home: Path) -> None:
    made = source(home, TALK, {"conversations": []}, TALK, leave_out=[1])
    assert (len(made), list(made.rows)) == (2, [0, 2])
    assert made.load(1, DRAW).name == "test:2"


@pytest.mark.parametrize(
    ("row", "kind", "sentence"),
    [
        ({"conversations": talk("What?")}, "conversation", "rows.jsonl:1: there is no answer"),
        (
            {"video": "a.mp4", **TALK},
            "text",
            "rows.jsonl:1: a row of kind 'text' must have no video",
        ),
        ({"video": "none.mp4", **TALK}, "conversation", "rows.jsonl:1: .*none.mp4: no such file"),
        (
            {"video": "rows.jsonl", **TALK},
            "conversation",
            "rows.jsonl:1: .*it cannot be opened|it is a text",
        ),
        (
            {"video": "a.mp4", "start": 9, **TALK},
            "conversation",
            "rows.jsonl:1: start must lie within",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(home: Path, row: Any, kind: str, sentence: str) -> None:
    made = source(home, row, kind=kind)
    for use in (made.cost, made.load):
        with pytest.raises(DataError, match=sentence):
            use(0, DRAW)


def test_arguments_that_break_a_rule(home: Path) -> None:
    with pytest.raises(ArgumentError, match=r"kind must be one of caption, .*, got 'talk'"):
        source(home, TALK, kind="talk")
    with pytest.raises(
        ArgumentError, match=r"sampling\.jitter must be left out for kind='grounding'"
    ):
        source(home, TALK, kind="grounding", sampling=Sampling(jitter=True))


def test_features_come_from_the_cache(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path, "model")
    made = source(home, {"video": "a.mp4", **TALK}, features=cache)
    sample = agrees(made, 0)
    ((key, frames),) = sample.parts
    assert (sample.features, frames) == (None, 4)
    features = torch.randn(4, 2, 32)
    cache.write(key, features)
    monkeypatch.setattr(conversation, "open_video", None)
    kept = agrees(made, 0)
    assert (kept.pixels, kept.parts, kept.seconds) == (None, sample.parts, sample.seconds)
    assert torch.equal(kept.features, features)
    assert made.limits(Limits(1, 2)).cost(0, DRAW).frames == 2


def test_a_source_can_be_sent_to_a_worker(home: Path) -> None:
    made = source(home, {"video": "a.mp4", **TALK})
    sent = pickle.loads(pickle.dumps(made))
    assert torch.equal(sent.load(0, DRAW).pixels, made.load(0, DRAW).pixels)


def test_training_sees_what_inference_sees(home: Path) -> None:
    torch.manual_seed(0)
    model = TimeViperNetwork(CONFIG).eval()
    rows = Rows(jsonl(home / "rows.jsonl", [{"video": "a.mp4", **TALK}]))
    sample = ConversationSource("test", rows, CONFIG.vision, COUNT).load(0, DRAW)
    tokens = model.projector.project(encode_features(model, sample))
    with torch.no_grad(), open_video(home / "a.mp4") as video:
        watch = StopWatch(model.device)
        batches = encode_video(model, video, torch.tensor([1, 3, 5, 7]), 2, watch, None)
        seen, seconds = map(torch.cat, zip(*batches))
    assert tuple(seconds.tolist()) == sample.seconds
    # batches of other sizes change the rounding
    torch.testing.assert_close(tokens, seen, rtol=1e-5, atol=1e-5)
