"""Packs are decoded in order, with or without workers; unreadable samples raise or are counted."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dataset.common import VISION, Numbers, film, jsonl, talk
from timeviper_fast.dataset.conversation import ConversationSource, TextCounter
from timeviper_fast.dataset.frames import Sampling
from timeviper_fast.dataset.joined import JoinedSource
from timeviper_fast.dataset.loader import PackLoader
from timeviper_fast.dataset.mixture import Mixture
from timeviper_fast.dataset.packing import Pack, Packer
from timeviper_fast.dataset.rows import Rows
from timeviper_fast.dataset.sample import Draw
from timeviper_fast.errors import ArgumentError, DataError
from timeviper_fast.text.byte_tokenizer import byte_tokenizer


def loader(sizes: list[int], packs: list[Pack] | None = None, **options: Any) -> PackLoader:
    sources = [Numbers("a", sizes), Numbers("b", sizes)]
    mixed = Mixture(sources, [1.0, 2.0], 0)
    return PackLoader(sources, packs or Packer(mixed, 20, 2, lambda cost: cost.text), **options)


def told(loaded: Any) -> list[Any]:
    return [
        (pack, [(sample.messages[1]["content"], float(sample.pixels.mean())) for sample in samples])
        for samples, pack in loaded
    ]


def test_workers_give_what_none_gives_and_leave_the_random_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = told(islice(loader([3, 8, 13, 25]), 12))
    assert told(islice(loader([3, 8, 13, 25], workers=2, prefetch=3), 12)) == alone
    assert torch.equal(torch.get_rng_state(), before)
    for pack, samples in alone:
        names = [f"{'ab'[draw.source]} {draw.index}" for draw in pack.draws]
        assert samples == [(name, draw.seed % 1000) for name, draw in zip(names, pack.draws)]


def test_a_state_continues_what_workers_had_ahead() -> None:
    """Workers run ahead of training, so a run continues from the last pack's state."""
    whole = told(islice(loader([3, 8, 13, 25]), 10))
    continued = Packer(
        Mixture([Numbers("a", [3, 8, 13, 25]), Numbers("b", [3, 8, 13, 25])], [1.0, 2.0], 0),
        20,
        2,
        lambda cost: cost.text,
    )
    continued.load_state_dict(whole[3][0].state)
    assert told(islice(PackLoader(continued.mixture.sources, continued), 6)) == whole[4:]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read(workers: int) -> None:
    packs = [
        Pack((Draw(0, 0, 1), Draw(0, 1, 2), Draw(1, 1, 3)), 12),
        Pack((Draw(0, 1, 4),), 9),
        Pack((Draw(1, 0, 5),), 3),
    ]
    skipping = loader([3, 9], packs, workers=workers, on_error="skip")
    assert [[name for name, _ in samples] for _, samples in told(skipping)] == [
        ["a 0"],
        [],
        ["b 0"],
    ]
    assert (skipping.skipped, skipping.notes) == (
        3,
        ["a:1: it cannot be read", "b:1: it cannot be read", "a:1: it cannot be read"],
    )
    with pytest.raises(DataError, match="a:1: it cannot be read"):
        list(loader([3, 9], packs, workers=workers))


def test_a_finite_list_of_packs_ends() -> None:
    packs = [Pack((Draw(0, 0, 1),), 3)] * 3
    assert len(list(loader([3], packs, workers=2))) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workers": -1}, "workers must be an integer of 0 or more, got -1"),
        ({"prefetch": 0}, "prefetch must be an integer above 0, got 0"),
        ({"on_error": "pass"}, "on_error must be one of raise, skip, got 'pass'"),
    ],
)
def test_arguments_that_break_a_rule(options: Any, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=f"PackLoader: {sentence}"):
        loader([1], **options)


def test_a_pack_takes_few_open_files() -> None:
    """Each separate tensor would be an open file of this process; the default limit is 1,024."""
    packs = [Pack(tuple(Draw(i % 2, 0, i) for i in range(60)), 0)]
    (alone,) = told(loader([3], packs))
    loading = iter(loader([3], packs, workers=1))
    before = len(os.listdir("/proc/self/fd"))
    received = next(loading)
    assert len(os.listdir("/proc/self/fd")) - before < 20
    assert told([received]) == [alone]


def test_videos_decoded_by_workers_are_those_decoded_without(tmp_path: Path) -> None:
    for k in range(3):
        film(tmp_path / f"{k}.mp4", 6 + 2 * k, grey=50 * k)
    table = [{"video": f"{k}.mp4", "conversations": talk("What?", "That.")} for k in range(3)]
    rows, count = Rows(jsonl(tmp_path / "a.jsonl", table)), TextCounter(byte_tokenizer())
    films = ConversationSource("films", rows, VISION, count, sampling=Sampling(jitter=True))
    sources = [films, JoinedSource(films)]

    def packs(workers: int) -> list[Any]:
        packer = Packer(Mixture(sources, [1, 1], 0), 900, 2, lambda cost: cost.text + cost.frames)
        return list(islice(PackLoader(sources, packer, workers), 4))

    for (alone, first), (sent, second) in zip(packs(0), packs(2)):
        assert first == second
        assert [vars(s) | {"pixels": 0} for s in alone] == [vars(s) | {"pixels": 0} for s in sent]
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(alone, sent))
