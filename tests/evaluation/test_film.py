"""Films are joined until they are long enough; an image replaces exactly one frame."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.evaluation.common import random_model
from timeviper_fast.evaluation.film import FilmHaystack, ImageNeedle, read_needles
from timeviper_fast.evaluation.needle import NeedlePlan, run_needles

pytest.importorskip("PIL")
from PIL import Image

COLOURS = ("red", "green", "blue", "grey")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two films of 30 and 20 different frames, and two images."""
    home = tmp_path_factory.mktemp("films")
    chance = np.random.default_rng(0)
    for name, frames in (("one", 30), ("two", 20)):
        np.save(home / f"{name}.npy", chance.integers(0, 256, (frames, 40, 60, 3), np.uint8))
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        Image.new("RGB", (50, 50), colour).save(home / f"{name}.png")
    return home


@pytest.fixture(scope="module")
def model():
    return random_model()


def needles(home):
    return [
        ImageNeedle(str(home / f"{name}.png"), "Which colour?", name, COLOURS)
        for name in ("red", "blue")
    ]


def films(home, *names):
    return [str(home / f"{name}.npy") for name in names]


def read(model, home, frames=45, names=("one", "two"), **options):
    return FilmHaystack.read(model, films(home, *names), needles(home), frames=frames, **options)


def test_films_are_joined_and_cut(model, home):
    calls = []
    made = read(model, home, progress=lambda *call: calls.append(call))
    assert calls == [("frames", 30, 45), ("frames", 45, 45)]
    assert made.facts["alike"] == made.facts["alike"] | {"frames": 45, "identical": 0}
    assert made.foot.startswith("one.npy, two.npy at 1 per second; 45 frames")
    assert made.tasks == ("red", "blue")


def test_an_image_replaces_its_frame(model, home):
    made = read(model, home)
    trial = made.trial(40, 7, 3, (0.0, 0.5))
    assert [probe.needed for probe in trial.probes] == [(0,), (19,)]
    seen, blind = made.visual(trial), made.visual(trial, blind=True)
    assert seen.shape == (40, 4, 128)
    assert {i for i in range(40) if not torch.equal(seen[i], blind[i])} == {0, 19}
    assert not torch.equal(seen[0], seen[19])
    assert torch.equal(made.visual(trial, blind=True), blind)
    starts = {made.trial(40, 7, n, (0.0, 0.5)).seed % 6 for n in range(30)}
    assert len(starts) == 6


def test_options_turn_and_their_letter_with_them(home):
    asked = needles(home)[1]
    probes = [asked.probe("blue", 3, 0.5, number) for number in range(4)]
    assert sorted(probe.truth for probe in probes) == list("ABCD")
    for probe in probes:
        assert f"({probe.truth}) blue" in probe.prompt


def test_a_run_over_films(model, home, tmp_path):
    plan = NeedlePlan((20, 40), depths=2, videos=2, controls=("blind",), max_new_tokens=1)
    rows = run_needles(model, model.tokenizer, read(model, home), plan, tmp_path)
    assert len(rows) == 2 * 2 * 2 * 2
    assert {row.truth for row in rows} <= set("ABCD")


def test_too_short_films_are_refused_with_the_seconds_that_are_missing(model, home):
    with pytest.raises(ValueError, match=r"films must hold 60 frames .* got 50; 10 seconds"):
        read(model, home, frames=60)
    with pytest.raises(ValueError, match=r"films must hold 60 .* got 25; 70 seconds"):
        read(model, home, frames=60, fps=0.5)
    with pytest.raises(ValueError, match="films must name different files"):
        read(model, home, names=("one", "one"))
    with pytest.raises(ValueError, match="frames must be at most the films' 45, got 46"):
        read(model, home).trial(46, 0, 0, (0.0, 1.0))


def test_needles_of_a_file(home):
    path = home / "needles.json"
    rows = [{"image": "red.png", "question": "Which?", "answer": "red", "options": COLOURS}]
    path.write_text(json.dumps(rows))
    (asked,) = read_needles(path)
    assert (asked.image, asked.options) == (str(home / "red.png"), COLOURS)
    for text in ("no json", '{"image": 1}', '[{"image": "red.png"}]', "[3]"):
        path.write_text(text)
        with pytest.raises(ValueError, match="needle must be an image, or a JSON list"):
            read_needles(path)


def test_needles_that_cannot_be_asked_are_refused(model, home):
    with pytest.raises(ValueError, match="answer must be one of the options"):
        ImageNeedle("x.png", "Which?", "pink", COLOURS)
    with pytest.raises(ValueError, match="question must not be blank"):
        ImageNeedle("x.png", " ", "red")
    twice = needles(home)[:1] * 2
    with pytest.raises(ValueError, match="needle must name different images"):
        FilmHaystack(model, torch.zeros(3, 4, 128), twice)
    film = [ImageNeedle(films(home, "one")[0], "Which?", "red")]
    with pytest.raises(ValueError, match="needle must be one picture"):
        FilmHaystack(model, torch.zeros(3, 4, 128), film)
