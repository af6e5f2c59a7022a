"""`timeviper-fast analyse`: its table, files and JSON; files of read videos; mistakes."""

from __future__ import annotations

import json
import sys

import pytest

from tests.cli.common import one_line
from timeviper_fast.timeviper import TimeViper

LEVELS = ("features", "session")


@pytest.fixture(scope="module")
def words(home):
    options = ["--model", home / "model", "--max-new-tokens", 3]
    return ["analyse", home / "video.mp4", "What moves?", *options]


def test_table_figures_and_numbers(run, words, home, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, err = run(*words, "--out", tmp_path / "out", "--sample", "fps:1")
    assert code == 0, err
    model = TimeViper.from_pretrained(home / "model")
    answer = model.ask(home / "video.mp4", "What moves?", max_new_tokens=3, policy="fps:1")
    told = json.loads((tmp_path / "out/analysis.json").read_text())
    assert told["answer"] == answer.text
    assert out.startswith(answer.text)
    table = out[out.index("layer  kind") :].splitlines()
    assert table[0].split() == [
        "layer", "kind", "tokens", "instruction", "vision", "answer", "sink",
    ]  # fmt: skip
    assert len(table) == 1 + len(told["layers"])
    for line, layer in zip(table[1:], told["layers"]):
        number, kind, _, *shares = line.replace(" %", "").split()
        assert (int(number), kind) == (layer["layer"], layer["kind"])
        assert layer["tokens"]["answer"] == len(answer.token_ids)
        assert sum(map(float, shares[:3])) == pytest.approx(100, abs=0.2)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    maps = {name for name in names if name.startswith("map-")}
    # of each kind of layer one head, and a picture beside the numbers
    assert len(maps) == 4
    assert names - maps == {
        "analysis.json", "shares.json", "shares.png", "sinks.json", "sinks.png", "kept.json",
        "kept.png",
    }  # fmt: skip
    (tmp_path / "again").mkdir()
    for name in ("analysis.json", "shares.json"):
        (tmp_path / "out" / name).rename(tmp_path / "again" / name)
    picture = tmp_path / "again/shares.png"
    assert run("analyse", "--replot", tmp_path / "again") == (0, f"{picture}\n", "")
    assert picture.read_bytes() == (tmp_path / "out/shares.png").read_bytes()


def test_chosen_heads_and_a_given_answer_without_pictures(run, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = ["--no-figures", "--heads", "3:1,0:2,3:0", "--without-dt", "--json", "-q"]
    code, out, err = run(*words, *options, "--out", tmp_path, "--answer", "A square.")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told == json.loads((tmp_path / "analysis.json").read_text())
    assert (told["answer"], told["with_dt"]) == ("A square.", False)
    # the tokenizer has a token for each byte
    assert {layer["tokens"]["answer"] for layer in told["layers"]} == {9}
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"analysis.json", *(f"{stem}.json" for stem in (
        "shares", "sinks", "kept", "map-0-2", "map-3-0", "map-3-1",
    ))}  # fmt: skip
    one_line(run("analyse", "--replot", tmp_path), "matplotlib must be installed", "[plot]")


def test_files_of_videos_that_were_read(run, words, home, tmp_path):
    model = TimeViper.from_pretrained(home / "model")
    model.open(home / "video.mp4", policy="fps:1").save(home / "a.session")
    model.save_features(home / "video.mp4", home / "a.features", policy="fps:1")
    options = [*words[2:], "--out", tmp_path, "--no-figures"]
    said = run("analyse", home / "a.features", *options, "--json")
    whole = json.loads(said[1])
    assert not whole["skipped"]
    code, out, err = run("analyse", home / "a.session", *options)
    assert code == 0, err
    told = json.loads((tmp_path / "analysis.json").read_text())
    assert told["answer"] == whole["answer"]
    assert told["skipped"]
    for layer in told["skipped"]:
        assert f"layer {layer} is not shown: the video's tokens are in this layer's state" in out
    shown = {layer["layer"] for layer in told["layers"]}
    assert shown | {*map(int, told["skipped"])} == {layer["layer"] for layer in whole["layers"]}
    one_line(
        run("analyse", home / "a.session", *options, "--heads", f"{min(told['skipped'])}:0"),
        "--heads must name layers that a session shows",
    )
    asked = [*options, "--mention-duration", "--json"]
    longer = [json.loads(run("analyse", home / f"a.{level}", *asked)[1]) for level in LEVELS]
    # both prompts say the length now, which the model by itself does not
    tokens = [told["layers"][-1]["tokens"]["instruction"] for told in (whole, *longer)]
    assert tokens[0] < tokens[1] == tokens[2]
    for level, option in zip(LEVELS, ("--sample", "--stages")):
        said = run("analyse", home / f"a.{level}", *options, option, "fps:1")
        one_line(said, f"{option} must be left out", f"a video that was read already ({level})")


def test_mistakes_are_one_line_before_the_weights_are_loaded(
    run, words, home, tmp_path, monkeypatch
):
    monkeypatch.setattr(TimeViper, "from_pretrained", None)
    given = [*words, "--no-figures", "--out", tmp_path / "out"]
    for heads in ("", "3", "3:", "3:a", "3:1,", "-1:0"):
        one_line(run(*given, f"--heads={heads}"), "--heads must be layer:head pairs such as")
    one_line(run(*given, "--heads", "1:0"), "--heads must name layers of attention or Mamba-2")
    one_line(run(*given, "--heads", "3:99"), "--heads must name heads 0 ..", "of layer 3")
    one_line(run(*given, "--sample", "often"), "--sample must")
    one_line(run(*given, "--start", "9:99"), "--start must")
    one_line(run(*given, "--max-new-tokens", 0), "--max-new-tokens must be a positive")
    one_line(run(*given, "--frame-batch", 0), "--frame-batch must be a positive")
    one_line(run("analyse", home / "video.mp4", "", *given[3:]), "question must not be empty")
    (tmp_path / "file").touch()
    one_line(run(*given, "--out", tmp_path / "file"), "--out must be a directory")
    one_line(run(*given, "--out", home / "model"), "--out must be another file than")
    one_line(run("analyse", tmp_path / "gone.mp4", "What?", *given[3:]), "gone.mp4")
    one_line(run("analyse", "--replot", tmp_path), "--replot must be a directory with figures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    one_line(run(*words, "--out", tmp_path / "out"), "matplotlib must be installed, got none")
    assert not (tmp_path / "out").exists()
