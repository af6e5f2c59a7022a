"""Lessons match their labels, and are functions of seed and number."""

from __future__ import annotations

import numpy as np
import torch

from tests.synthetic.common import read_sign
from timeviper_fast.synthetic.glyphs import GLYPHS, LETTERS
from timeviper_fast.synthetic.lessons import IGNORE, labels_of, lesson, to_pixels
from timeviper_fast.synthetic.needle import COLOURS, KINDS, Needle
from timeviper_fast.synthetic.world import World
from timeviper_fast.video.preprocess import resize_normalize

WORLDS = {level: World(3, level) for level in ("study", "hard")}


def test_labels_name_what_a_frame_shows():
    none = IGNORE
    assert labels_of(None) == (KINDS.index("plain"), none, none, none)
    assert labels_of(Needle("sign", "K7")) == (1, LETTERS.index("K"), GLYPHS.index("7"), none)
    assert labels_of(Needle("link", "KM")) == (5, LETTERS.index("K"), GLYPHS.index("M"), none)
    assert labels_of(Needle("ring", colour="pink")) == (3, none, none, list(COLOURS).index("pink"))


def test_signs_are_labelled_with_what_an_independent_reader_sees():
    pixels, labels = lesson(WORLDS, 0, 60, plain=0.0, hard=0.0)
    frames = ((pixels * 0.5 + 0.5) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    signs = [i for i in range(60) if labels[i, 0] == KINDS.index("sign")]
    assert len(signs) > 5
    for i in signs[:8]:
        assert read_sign(frames[i]) == LETTERS[labels[i, 1]] + GLYPHS[labels[i, 2]]


def test_a_lesson_does_not_depend_on_its_batch():
    whole = lesson(WORLDS, 10, 24, 0.3, 0.5)
    parts = [lesson(WORLDS, 10, 9, 0.3, 0.5), lesson(WORLDS, 19, 15, 0.3, 0.5)]
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([part[i] for part in parts]))


def test_shares_are_kept():
    _, labels = lesson(WORLDS, 0, 1500, plain=0.25, hard=0.4)
    kinds = torch.bincount(labels[:, 0], minlength=6) / 1500
    assert abs(kinds[0] - 0.25) < 0.05
    for kind, share in {"sign": 0.30, "link": 0.45, "star": 0.25 / 3}.items():
        assert abs(kinds[KINDS.index(kind)] - 0.75 * share) < 0.05
    seconds = labels[labels[:, 0] == KINDS.index("link"), 2]
    assert abs((seconds >= len(LETTERS)).float().mean() - 0.5) < 0.1


def test_pixels_are_those_that_a_video_would_give():
    frames = WORLDS["study"].render(range(3))
    assert torch.equal(to_pixels(frames), resize_normalize(torch.from_numpy(frames), 48))
    assert to_pixels(np.zeros((1, 48, 48, 3), np.uint8)).min() == -1
