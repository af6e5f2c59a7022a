"""A directory as VideoChat-Flash is released: ask, info and convert take it as it is."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.hub import hub_directory, tiny_tower
from tests.cli.common import one_line
from tests.goldens import golden
from timeviper_fast.presets import VISION_PRESETS
from timeviper_fast.video import write_video

HICO = "uniform:2:0.75,attention:4:0.25:normed"


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A released directory under its name on the Hub, beside the frames of the recorded runs."""
    home = tmp_path_factory.mktemp("flash")
    numpy = pytest.importorskip("numpy")
    numpy.save(home / "frames.npy", golden("vcf_generate")["frames"].numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VISION_PRESETS, "umt-hd-large", tiny_tower())
        hub_directory(home / "OpenGVLab/VideoChat-Flash-Qwen2_5-2B_res448")
        yield home


@pytest.fixture
def ask(flash: Path, monkeypatch: pytest.MonkeyPatch, run: Any) -> Any:
    monkeypatch.chdir(flash)
    model = "OpenGVLab/VideoChat-Flash-Qwen2_5-2B_res448"
    return lambda *more: run(
        "ask", "frames.npy", "What moves?", "--model", model, "--max-new-tokens", 8, *more
    )


def test_ask_answers_as_the_project_does(ask: Any) -> None:
    """Also its penalty for repeated tokens, which its files set."""
    code, out, err = ask("--json", "--stages", HICO)
    assert code == 0, err
    told = json.loads(out)
    assert told["token_ids"] == golden("vcf_generate")["drop_penalty.generated"][0].tolist()
    assert [stage["after"] for stage in told["stages"]] == [96, 32]
    code, out, _ = ask("--json", "--repetition-penalty", 1)
    assert json.loads(out)["token_ids"] == golden("vcf_generate")["nodrop.generated"][0].tolist()
    assert json.loads(out)["stages"] == []


def test_a_clip_that_is_filled_is_said(ask: Any) -> None:
    code, _, err = ask("--end", "0:06", "--sample", "uniform:6")
    assert code == 0
    said = "frames.npy: To fill clips of 4 frames, the video ends with 2 copies of its last frame."
    assert said in err
    assert said not in ask("--end", "0:06", "--sample", "uniform:6", "--quiet")[2]


def test_mistakes_in_stages_come_before_the_weights(ask: Any, monkeypatch: Any) -> None:
    one_line(ask("--stages", "attention:4:0.25"), "--stages must say which stream attention scores")
    one_line(ask("--stages", "uniform0_attention"), "must stand before one of the blocks 1 to 4")
    one_line(ask("--repetition-penalty", 0), "--repetition-penalty must be above 0, got 0")


def test_a_prompt_longer_than_the_window(ask: Any, flash: Path) -> None:
    config = flash / "OpenGVLab/VideoChat-Flash-Qwen2_5-2B_res448/config.json"
    whole = config.read_text()
    config.write_text(json.dumps(json.loads(whole) | {"tokenizer_model_max_length": 250}))
    try:
        *_, err = ask()
        assert (
            "--sample must fit the model's window of 250 tokens, got videochat-flash with 8" in err
        )
    finally:
        config.write_text(whole)


def test_info_reads_the_directory_and_knows_the_released_shapes(ask: Any, run: Any) -> None:
    code, out, _ = run("info", "OpenGVLab/VideoChat-Flash-Qwen2_5-2B_res448", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["config"]["policy"] == "videochat-flash"
    assert (facts["stages"], facts["window"], facts["frame_size"]) == ("none", 32768, 144)
    code, out, _ = run("info", "videochat-flash-7b-internvideo2", "--json")
    facts = json.loads(out)
    parts = ("vision", "projector", "llm")
    assert sum(facts[f"{part}_parameters"] for part in parts) == 8_620_852_736


def test_convert_writes_our_format(ask: Any, run: Any, tmp_path: Path) -> None:
    name = "OpenGVLab/VideoChat-Flash-Qwen2_5-2B_res448"
    code, _, err = run("convert", tmp_path / "ours", "--model", name, "--dtype", "float32")
    assert code == 0, err
    assert json.loads((tmp_path / "ours/config.json").read_text())["format"] == "timeviper_fast"
    code, out, err = run(
        "ask", "frames.npy", "What moves?", "--model", tmp_path / "ours", "--max-new-tokens", 8,
        "--json", "--stages", HICO,
    )  # fmt: skip
    assert code == 0, err
    want = golden("vcf_generate")["drop_penalty.generated"][0].tolist()
    assert json.loads(out)["token_ids"] == want
    both = ("convert", tmp_path / "new", "--model", name)
    one_line(run(*both, "--llm", name), "--llm must be left out with a whole model (--model)")
    one_line(run(*both, "--pdrop", "uni_2_0.5"), "--pdrop must be left out with a whole model")
    for option in ("--arch", "--vision"):
        words = f"{option} must be left out with a whole model (--model)"
        one_line(run(*both, option, "tome_mlp-16"), words)
    words = "language model's Hugging Face directory, got"
    one_line(run("convert", tmp_path / "new", "--llm", name), words)
    one_line(run("convert", tmp_path / "new"), "--llm must be given, or --model for a whole model")


def test_a_short_film(ask: Any, run: Any, flash: Path) -> None:
    """3 s at 5 frames per second: 8 frames, the middles of equal intervals, as the project takes."""
    write_video("film.mp4", golden("vcf_generate")["frames"][:, :, :80].repeat(2, 1, 1, 1)[:15], 5)
    code, out, err = run(
        "ask", "film.mp4", "What moves?", "--max-new-tokens", 1, "--json",
        "--model", "OpenGVLab/VideoChat-Flash-Qwen2_5-2B_res448",
    )  # fmt: skip
    assert code == 0, err
    edges = [15 * i // 8 for i in range(9)]
    middles = [(a + b - 1) // 2 for a, b in pairwise(edges)]
    assert json.loads(out)["frame_seconds"] == pytest.approx([m / 5 for m in middles])
