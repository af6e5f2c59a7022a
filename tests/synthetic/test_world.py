"""Frames are functions of seed and number, no two are alike, and they survive a video file."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.synthetic.common import nearest, read_sign, thumbnails
from timeviper_fast.synthetic.needle import Needle
from timeviper_fast.synthetic.world import World
from timeviper_fast.video import open_video, write_video
from timeviper_fast.video.preprocess import resize_bicubic

LEVELS = ("study", "hard")
SIGNS = [Needle("sign", text) for text in ("K7", "M4", "B8", "S5", "Z2", "G6", "Q0", "W3")]
ALL = [None, SIGNS[0], Needle("link", "KM"), Needle("link", "B8"), Needle("star", colour="red")]
ALL += [Needle("ring", colour="pink"), Needle("heart", colour="cyan")]


@pytest.mark.parametrize("level", LEVELS)
def test_a_frame_does_not_depend_on_the_others(level):
    numbers, needles = np.arange(28) * 3, ALL * 4
    together = World(7, level).render(numbers, needles)
    order = np.random.default_rng(0).permutation(28)
    shuffled = World(7, level).render(numbers[order], [needles[i] for i in order])
    np.testing.assert_array_equal(shuffled, together[order])
    alone = World(7, level).render([numbers[4]], [needles[4]])
    np.testing.assert_array_equal(alone[0], together[4])


def test_another_process_draws_the_same_frames():
    code = (
        "import hashlib; from timeviper_fast.synthetic.world import World\n"
        "print(hashlib.sha256(World(7, 'hard').render(range(40, 70)).tobytes()).hexdigest())"
    )
    done = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    here = hashlib.sha256(World(7, "hard").render(range(40, 70)).tobytes()).hexdigest()
    assert {run.stdout.strip() for run in done} == {here}


@pytest.mark.parametrize("level", LEVELS)
def test_seeds_share_no_frame(level):
    one, other = (World(seed, level).render(range(20)) for seed in (1, 2))
    assert nearest(thumbnails(np.concatenate([one, other]))).min() > 20


@pytest.mark.parametrize("level", LEVELS)
def test_no_two_frames_are_alike(level):
    """No distance between thumbnails is near 0, also within a moving shot."""
    distances = nearest(thumbnails(World(3, level).render(range(1500))))
    assert distances.min() > np.median(distances) / 20
    assert distances.min() > 2


@pytest.mark.parametrize("level", LEVELS)
def test_a_needle_replaces_part_of_its_plain_frame(level):
    """The card covers less than half of the picture; the rest changes only by codec artefacts."""
    world, numbers = World(9, level, lookalike=0.0), range(60)
    plain = world.render(numbers).astype(int)
    shown = world.render(numbers, [SIGNS[i % 8] for i in numbers]).astype(int)
    same = (abs(plain - shown).max(-1) <= 60).mean((1, 2))
    assert same.min() > 0.5
    assert same.max() < 0.9


@pytest.mark.parametrize("level", LEVELS)
def test_larger_pictures_show_the_same_scene(level):
    numbers, needles = range(21), ALL * 3
    small = World(5, level).render(numbers, needles).astype(np.float32)
    large = World(5, level).render(numbers, needles, size=192).astype(np.float32)
    shrunk = large.reshape(21, 48, 4, 48, 4, 3).mean((2, 4))
    assert abs(shrunk - small).mean() < (3 if level == "study" else 8)


def test_a_hard_background_moves():
    """Within a shot each frame is more like the next one than like other shots."""
    points = thumbnails(World(2, "hard", lookalike=0.0).render(range(320)))
    points -= points.mean(1, keepdims=True)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    within = (points[:-1] * points[1:]).sum(1)
    shots = np.arange(319) % 32 != 31
    across = (points[:-32] * points[32:]).sum(1)
    assert within[shots].mean() > across.mean() + 0.3


def test_signs_can_be_read_by_an_independent_reader():
    frames = World(4).render(range(24), SIGNS * 3)
    assert [read_sign(frame) for frame in frames] == [sign.text for sign in SIGNS * 3]


def test_a_video_file_keeps_what_frames_show(tmp_path):
    """H.264 at 384 pixels, decoded and resized to 48: the glyphs can still be read."""
    pytest.importorskip("av")
    world, needles = World(6), SIGNS * 2
    write_video(tmp_path / "w.mp4", world.render(range(16), needles, size=384), fps=1)
    with open_video(tmp_path / "w.mp4") as video:
        pictures = torch.cat([batch.rgb for batch in video.frames(range(16))])
    frames = resize_bicubic(pictures, 48, 48)
    seen = frames.permute(0, 2, 3, 1).numpy()
    drawn = world.render(range(16), needles)
    assert abs(seen.astype(int) - drawn).mean() < 6
    assert [read_sign(frame) for frame in seen] == [needle.text for needle in needles]


def test_thousands_of_frames_are_drawn_per_second():
    """At least 1,000 per second of CPU time; an idle machine draws about 6,000."""
    world, needles = World(1), ALL * 40
    world.render(range(280), needles)
    start = time.process_time()
    world.render(range(280), needles)
    assert time.process_time() - start < 0.28


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: World(0, "easy"), "World: level must be one of study, hard, got 'easy'"),
        (lambda: World(0).render([0], size=50), "World: size must be a multiple of 48, got 50"),
        (lambda: World(0).render([0, 1], [None]), "World: needles must have one entry per frame"),
    ],
)
def test_mistakes_are_told(call, sentence):
    with pytest.raises(ValueError) as error:
        call()
    assert sentence in str(error.value)
