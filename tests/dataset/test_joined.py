"""Long samples: clips of several videos in a random order, and the clip of the question."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dataset.common import VISION, film, jsonl, talk
from timeviper_fast.dataset.conversation import ConversationSource, TextCounter
from timeviper_fast.dataset.features import FeatureCache
from timeviper_fast.dataset.frames import Sampling
from timeviper_fast.dataset.joined import JoinedSource
from timeviper_fast.dataset.rows import Rows
from timeviper_fast.dataset.sample import Cost, Draw, Limits
from timeviper_fast.errors import ArgumentError, DataError
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.text.prompt import training_prompt

TOKENIZER = byte_tokenizer()
COUNT = TextCounter(TOKENIZER)
FILMS = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Film k lasts for k + 1 seconds, and its frames have grey levels from 64 k on."""
    folder = tmp_path_factory.mktemp("films")
    for k in range(FILMS):
        film(folder / f"{k}.mp4", 2 * (k + 1), grey=64 * k)
    return folder


def rows(*films: int) -> list[dict[str, Any]]:
    return [
        {"video": f"{k}.mp4", "conversations": talk(f"Which {k}?", f"Film {k}.")} for k in films
    ]


def joined(
    home: Path, table: list[dict[str, Any]], clips: tuple[int, int] = (2, 4), **options: Any
) -> JoinedSource:
    inner = ConversationSource(
        "films", Rows(jsonl(home / "rows.jsonl", table)), VISION, COUNT, **options
    )
    return JoinedSource(inner, clips)


def films_of(pixels: torch.Tensor) -> list[int]:
    """The film of each frame."""
    return [int(float((frame.mean() * 0.5 + 0.5) * 255) + 2) // 64 for frame in pixels]


def test_clips_one_behind_the_other_and_the_asked_one(home: Path) -> None:
    made = joined(home, rows(0, 1, 2, 3), mention_duration=True)
    counts, places = set(), set()
    for seed in range(24):
        index = seed % 4
        draw = Draw(0, index, seed)
        sample = made.load(index, draw)
        prompt = training_prompt(TOKENIZER, sample.messages, preface=sample.preface)
        assert made.cost(index, draw) == Cost(sample.frames, prompt.length(0))
        seen = films_of(sample.pixels)
        order = list(dict.fromkeys(seen))
        # film k lasts for k + 1 seconds, of which one frame each is seen
        assert seen == [k for k in order for _ in range(k + 1)]
        told = re.fullmatch(
            r"The video lasts for (\d+)\.0 seconds, and (\d+) frames are uniformly sampled from it\. "
            r"The video is made of (\d) clips, one behind the other\. "
            r"The question is about clip (\d), from (\d+)\.00 to (\d+)\.00 seconds\. ",
            sample.preface,
        )
        lasts, frames, clips, number, start, end = map(int, told.groups())
        assert order[number - 1] == index
        assert (lasts, frames, clips) == (len(seen), len(seen), len(order))
        assert start == sum(k + 1 for k in order[: number - 1])
        assert end - start == index + 1
        assert sample.needed == tuple(i for i, k in enumerate(seen) if k == index)
        assert sample.seconds == tuple(i + 0.5 for i in range(len(seen)))
        assert sample.messages[0]["content"] == f"Which {index}?"
        assert sample.name == f"films-joined:{index}"
        counts.add(clips)
        places.add((clips, number))
    assert counts == {2, 3, 4}
    assert len(places) > 6


def test_the_same_draw_is_the_same_sample(home: Path) -> None:
    made = joined(home, rows(0, 1, 2, 3))
    first, again, other = (made.load(1, Draw(0, 1, seed)) for seed in (3, 3, 4))
    assert torch.equal(first.pixels, again.pixels)
    assert first.preface == again.preface != other.preface


def test_the_frames_of_all_clips_together_are_limited(home: Path) -> None:
    made = joined(home, rows(0, 1, 2, 3), sampling=Sampling("uniform", clip_frames=2))
    for most in (4, 5, 9, 16):
        limited = made.limits(Limits(1, most))
        frames = [limited.cost(i % 4, Draw(0, i, i)).frames for i in range(16)]
        assert max(frames) <= most
        assert {count % 2 for count in frames} == {0}
    with pytest.raises(ArgumentError, match="max_frames must allow two clips of 2 frames, got 3"):
        made.limits(Limits(1, 3))


def test_videos_are_joined_once_and_pictures_and_text_not_at_all(home: Path) -> None:
    table = [*rows(0, 0, 0, 1), {"conversations": talk("Text?", "Yes.")}]
    made = joined(home, table, (2, 4))
    assert len(made) == 4
    for seed in range(6):
        assert set(films_of(made.load(0, Draw(0, 0, seed)).pixels)) == {0, 1}
    with pytest.raises(DataError, match="rows must have two videos or more to join, got one"):
        joined(home, rows(0, 0)).load(0, Draw(0, 0, 0))


def test_a_faulty_row_is_named_where_it_is_drawn(home: Path) -> None:
    made = joined(home, [*rows(0), {"video": "none.mp4", "conversations": talk("What?", "That.")}])
    for use in (made.cost, made.load):
        with pytest.raises(DataError, match=r"rows.jsonl:1: .*none\.mp4: no such file"):
            use(0, Draw(0, 0, 0))


def test_features_are_joined_where_all_are_kept(home: Path, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "model")
    made, draw = joined(home, rows(0, 1, 2, 3), (3, 3), features=cache), Draw(0, 2, 1)
    sample = made.load(2, draw)
    assert (len(sample.parts), sample.features) == (3, None)
    features = torch.randn(sample.frames, 2, 32).split([frames for _, frames in sample.parts])
    for (key, _), part in list(zip(sample.parts, features))[:2]:
        cache.write(key, part)
    assert torch.equal(made.load(2, draw).pixels, sample.pixels)
    cache.write(sample.parts[2][0], features[2])
    kept = made.load(2, draw)
    assert kept.pixels is None
    assert torch.equal(kept.features, torch.cat(features))


@pytest.mark.parametrize("clips", [(1, 4), (4, 3), [2, 3], (2,), (2.0, 3)])
def test_numbers_of_clips(home: Path, clips: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"clips must be a tuple \(low, high\) with 2 <= low <= high"
    ):
        joined(home, rows(0, 1), clips)


def test_grounding_cannot_be_joined(home: Path) -> None:
    with pytest.raises(ArgumentError, match="source must be of a kind whose answers name no times"):
        joined(home, rows(0, 1), kind="grounding")
