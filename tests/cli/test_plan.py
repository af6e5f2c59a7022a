"""The command plan: tables, JSON, a video's frames, and mistakes as one line."""

from __future__ import annotations

import json

import pytest

from tests.cli.common import one_line
from timeviper_fast.inference.plan import plan
from timeviper_fast.presets import preset
from timeviper_fast.video import open_video

NINE_B = "nemotron-nano-9b-v2"


def test_the_json_object_is_the_plan(run):
    code, out, _ = run(
        "plan", "--frames", 2000, "--model", NINE_B, "--gpu", "h100", "--questions", 4, "--json"
    )
    assert code == 0
    made = plan(preset(NINE_B), 2000, gpu="h100", questions=4)
    assert json.loads(out) == json.loads(json.dumps(made.to_dict()))


def test_the_tables_name_kinds_layers_and_floors(run):
    code, out, _ = run("plan", "--frames", 10000, "--model", NINE_B, "--gpu", "rtx4090")
    assert code == 0
    text = " ".join(out.split())
    for words in (
        "0 to 6 160,080 7 to 38 80,080 39 to 55 16,080",
        "LLM, video (once) 1,229.031 1,018.552 196.709",
        "Questions matter from layer 39 on: a question costs 6.2% of opening and asking.",
        "Floors: NVIDIA Ada GPU Architecture, appendix A; no promise, a run is slower.",
        "weights 18.843 exact session 2.130 exact",
        "reserve 0.800 estimate",
        "chunk 8192, frame batch 64, the session's rows on the device",
        "It fits rtx4090 (24.00 GB): 0.63 GB are left.",
    ):
        assert words in text, words
    stages = ("--stages", "attention:14:0.25:raw")
    code, out, _ = run("plan", "--frames", 10000, "--model", NINE_B, *stages)
    assert "the stage stands early, so a session saves little." in " ".join(out.split())
    code, out, _ = run("plan", "--frames", 100, "--model", NINE_B, "--stages", "none")
    assert code == 0
    assert "Questions matter" not in out
    assert "Floors" not in out
    assert "It fits" not in out


def test_a_video_is_counted_and_not_decoded(run, home, monkeypatch):
    with open_video(home / "video.mp4") as source:
        assert source.num_frames == 30
    monkeypatch.setattr("timeviper_fast.video.video.Video.frames", None)
    for policy, frames in (("fps:2", 12), ("uniform:7", 7)):
        options = ("--model", home / "model", "--sample", policy, "--json")
        code, out, _ = run("plan", home / "video.mp4", *options)
        assert code == 0
        assert json.loads(out)["frames"] == frames


def test_weights_are_not_read(run, home, monkeypatch):
    monkeypatch.setattr("timeviper_fast.checkpoint.weights.load_weights", None)
    (home / "model" / "model.safetensors").rename(home / "away")
    try:
        assert run("plan", "--frames", 3, "--model", home / "model")[0] == 0
    finally:
        (home / "away").rename(home / "model" / "model.safetensors")


MISTAKES = [
    (("plan",), "VIDEO or --frames must be given, one of the two, got neither"),
    (("plan", "v.mp4", "--frames", 3), "one of the two, got both"),
    (("plan", "--frames", 3, "--model", "nine"), "--model must be a preset (nemotron-nano-9b-v2, "),
    (("plan", "--frames", 0), "--frames must be an integer of 1 or more, got 0"),
    (("plan", "--frames", 3, "--gpu", "x"), "--gpu must be one of b200, "),
    (("plan", "--frames", 3, "--stages", "x"), "--stages must be none, "),
    (("plan", "no.mp4"), "no.mp4"),
    (
        ("plan", "--frames", 10000, "--model", NINE_B, "--gpu", "16GB"),
        "--frames must fit the memory of 16GB (16.00 GB), got 10,000 frames: ",
    ),
    (
        ("plan", "--frames", 10000, "--model", NINE_B, "--gpu", "16GB"),
        "a larger GPU is needed: --gpu 23GB",
    ),
    (
        ("plan", "--frames", 20000, "--model", NINE_B),
        "at most 16,342 frames fit: --frames 16342",
    ),
]


@pytest.mark.parametrize(("line", "words"), MISTAKES)
def test_mistakes_are_one_line(run, line, words):
    one_line(run(*line), words)


def test_a_video_that_does_not_fit_is_named_by_its_sample(run, home):
    options = ("--model", NINE_B, "--gpu", "20.5GB", "--questions", 8, "--sample", "fps:2")
    result = run("plan", home / "video.mp4", *options)
    one_line(result, "--sample must fit the memory of 20.5GB", "12 frames (fps:2)", "--questions ")
