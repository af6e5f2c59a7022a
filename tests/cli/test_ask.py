"""The command ask: what it prints, and one clear line for each mistake."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import torch
from PIL import Image

from tests.cli.common import one_line
from tests.random_model import tiny_model
from timeviper_fast import TimeViper, video
from timeviper_fast.embedded.models import TINY, TINY_NOTE, embedded_directory
from timeviper_fast.inference import ask as inference
from timeviper_fast.video import write_video


def test_ask_prints_the_answer_and_nothing_else(run, home):
    code, out, err = run(
        "ask", home / "video.mp4", "What moves?", "--model", home / "model", "--max-new-tokens", 4
    )
    assert (code, err) == (0, "")
    assert len(out.strip()) >= 1


def test_without_a_model_the_embedded_one_answers_and_says_what_it_knows(run, home):
    ask = ("ask", home / "video.mp4", "What does the sign say?", "--max-new-tokens", 4)
    code, out, err = run(*ask)
    assert (code, err.split()) == (0, TINY_NOTE.split())
    assert run(*ask, "--quiet") == (0, out, "")
    assert run(*ask, "--stream")[2].split() == TINY_NOTE.split()
    code, out, err = run(*ask, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["model_note"] == TINY_NOTE
    code, out, _ = run(*ask, "--model", home / "model", "--json")
    assert json.loads(out)["model_note"] == ""


def test_nothing_is_written_into_the_package(run, home):
    target = embedded_directory(TINY) / "answer.txt"
    one_line(run("ask", home / "video.mp4", "What?", "-o", target), "--output must be another file")


def test_ask_as_json_with_times(run, home):
    code, out, _ = run(
        "ask", home / "video.mp4", "What?", "--model", home / "model", "--json",
        "--sample", "uniform:4", "--max-new-tokens", 3, "--temperature", 1.0, "--seed", 5,
    )  # fmt: skip
    answer = json.loads(out)
    assert code == 0
    assert len(answer["frame_seconds"]) == 4
    assert [s["before"] for s in answer["stages"]] == [64, 32]
    code, _, err = run(
        "ask", home / "video.mp4", "What?", "--model", home / "model", "--times",
        "--sample", "uniform:4", "--max-new-tokens", 3,
    )  # fmt: skip
    assert code == 0
    for stop in ("decode", "resize", "vision", "merge", "project", "prompt", "prefill", "generate"):
        assert stop in err


def test_a_streamed_answer_is_the_answer(run, home):
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", "--max-new-tokens", 5)
    _, whole, _ = run(*ask)
    code, streamed, _ = run(*ask, "--stream")
    assert code == 0
    assert streamed.strip() == whole.strip()


def test_a_part_of_the_video(run, home):
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", "--max-new-tokens", 2)
    code, out, _ = run(*ask, "--start", "0:02", "--end", "4.5", "--json")
    assert code == 0
    assert json.loads(out)["frame_seconds"] == [2, 3, 4]
    one_line(
        run(*ask, "--start", "1:00"),
        "--start must lie within the video (00:00 to 00:06), got 01:00",
    )
    one_line(run(*ask, "--end", "1:00"), "--end must lie within the video (00:00 to 00:06)")
    one_line(run(*ask, "--end", "0:99"), "--end must be a time of 0 or more, as seconds, mm:ss")


def test_out_of_memory_is_one_line_with_a_remedy(run, home, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. ...")

    monkeypatch.setattr(inference, "answer", full)
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model")
    one_line(run(*ask), "ran out of memory", "--frame-batch", "--sample")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA says")
def test_a_device_that_is_not_here(run, home):
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", "--device", "cuda")
    one_line(run(*ask), "device must be one that is here (no CUDA device), got 'cuda'")


def edited(home, tmp_path, edit):
    """The tiny model with another config.json."""
    target = tmp_path / "edited"
    shutil.copytree(home / "model", target)
    config = json.loads((target / "config.json").read_text())
    edit(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_directory_that_is_no_model(run, home, tmp_path):
    ask = ("ask", home / "video.mp4", "What?", "--model", tmp_path)
    one_line(run(*ask), f"--model must be a model's directory (with a config.json), got {tmp_path}")


@pytest.mark.parametrize("temperature", [0, 1])
def test_weights_that_are_no_numbers(run, home, tmp_path, temperature):
    model = tiny_model()
    with torch.no_grad():
        model.backbone.norm_f.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    ask = ("ask", home / "video.mp4", "What?", "--model", tmp_path / "nan")
    one_line(
        run(*ask, "--temperature", temperature),
        "logits must be finite, got NaN or infinity in float32",
    )


def test_wrong_paths(run, home):
    ask = ("ask", home / "nothing.mp4", "What?", "--model", home / "model")
    one_line(run(*ask), "nothing.mp4: no such file or directory")
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "nothing")
    one_line(run(*ask), "nothing")


def test_no_video_stream(run, home, tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    one_line(run("ask", text, "What?", "--model", home / "model"), "notes.mp4")


def test_a_question_of_no_length(run, home):
    ask = ("ask", home / "video.mp4", " ", "--model", home / "model")
    one_line(run(*ask), "question must not be empty or blank")


def test_a_question_that_is_no_utf8(run, home):
    ask = ("ask", home / "video.mp4", "O\udcf9?", "--model", home / "model")
    one_line(run(*ask), "question must be valid UTF-8 text, got 'O\\udcf9?'")
    ask = ("ask", home / "video.mp4", "Where?", "--model", home / "model")
    one_line(run(*ask, "--answer-prefix", "\udcf9"), "--answer-prefix must be valid UTF-8")


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (("--chunk", 0), "--chunk must be a positive number of tokens, got 0"),
        (("--frame-batch", -3), "--frame-batch must be a positive number of frames, got -3"),
        (("--max-new-tokens", -1), "--max-new-tokens must be a positive number of tokens"),
        (("--temperature", "nan"), "--temperature must be 0 or more, got nan"),
        (("--top-k", -1), "--top-k must be 0 (off) or more, got -1"),
        (("--top-p", 2), "--top-p must lie in (0, 1], got 2.0"),
        (("--seed", 2**63), "--seed must be an int of 64 bits"),
        (("--sample", "fps:0"), "fps must be a finite number above 0"),
        (("--answer-prefix", "\udcf9"), "--answer-prefix must be valid UTF-8"),
        (("--dtype", "int8"), "value for '--dtype': 'int8' is not one of 'bfloat16'"),
        (("--backend", "cuda"), "'cuda' is not one of 'reference', 'triton'"),
    ],
)
def test_cheap_mistakes_are_found_before_anything_is_read(run, home, monkeypatch, mistake, words):
    def read(*args, **kwargs):
        pytest.fail("the model or the video is read")

    monkeypatch.setattr(TimeViper, "from_pretrained", read)
    monkeypatch.setattr(video, "open_video", read)
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", *mistake)
    one_line(run(*ask), words)
    ask = ("ask", home / "video.mp4", "", "--model", home / "model")
    one_line(run(*ask), "question must not be empty or blank")


def test_an_op_that_cannot_run_names_the_options(run, home):
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", "--backend", "triton")
    result = run(*ask)
    one_line(result, "; --backend reference (plain PyTorch) or --device cpu runs it")
    assert "use_backend" not in result[2]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"keep": 0}, "keep must lie in (0, 1], got 0"),
        ({"keep": 1.5}, "keep must lie in (0, 1], got 1.5"),
        ({"layer": 40}, "layer must be at most 11, the last layer, got 40"),
        ({"layer": 2, "select": "attention"}, "layer must be an attention layer (3, 8)"),
    ],
)
def test_stages_that_cannot_be(run, home, tmp_path, stage, words):
    model = edited(home, tmp_path, lambda config: config["stages"][0].update(stage))
    one_line(run("ask", home / "video.mp4", "What?", "--model", model), words)


def test_a_checkpoint_of_another_size(run, home, tmp_path):
    def widen(config):
        config["backbone"]["intermediate_size"] *= 2

    model = edited(home, tmp_path, widen)
    one_line(run("ask", home / "video.mp4", "What?", "--model", model), "up_proj.weight")


def test_a_prompt_longer_than_the_window(run, home, tmp_path):
    def narrow(config):
        config["backbone"]["max_position_embeddings"] = 64

    model = edited(home, tmp_path, narrow)
    ask = ("ask", home / "video.mp4", "What?", "--model", model)
    one_line(run(*ask), "window of 64 tokens")
    # the sentence ends with options that fit
    *_, err = run(*ask, "--max-new-tokens", 8, "--sample", "fps:5")
    assert err.startswith("timeviper-fast: --sample must fit the model's window of 64 tokens, got ")
    fitting = re.search(r"at most (\d+) frames fit: (--sample fps:5:max=\1)$", err.strip())
    assert fitting, err
    code, out, _ = run(*ask, "--max-new-tokens", 8, *fitting[2].split(), "--json")
    assert code == 0
    assert len(json.loads(out)["frame_seconds"]) == int(fitting[1])


def test_what_is_left_out_of_a_directory_is_said(run, home, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "0.png")
    (tmp_path / "readme.txt").write_text("words")
    ask = ("ask", tmp_path, "What?", "--model", home / "model", "--max-new-tokens", 2)
    code, out, err = run(*ask)
    assert code == 0
    note = f"{tmp_path}: left out of the directory: 1 file of another kind (readme.txt)"
    assert err.strip() == note
    assert run(*ask, "--quiet") == (0, out, "")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--sample", "every:2"), "--sample must be one of fps:RATE"),
        (("--device", "nope"), "--device must be cpu, cuda or cuda:N, got 'nope'"),
        (("--device", "meta"), "--device must be cpu, cuda or cuda:N, got 'meta'"),
        (("--device", "xpu"), "--device must be cpu, cuda or cuda:N, got 'xpu'"),
        (("--backend", "triton"), "Triton cannot run on a cpu tensor"),
        (("--nonsense", 1), "--nonsense"),
        (("--top-k", "many"), "'--top-k'"),
    ],
)
def test_options(run, home, option, words):
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", *option)
    one_line(run(*ask), words)


def test_damaged_video_is_used_on_request(run, home, tmp_path):
    cut = tmp_path / "cut.mkv"
    frames = tiny_frames()
    write_video(cut, frames, fps=5, options={"g": "5"})
    cut.write_bytes(cut.read_bytes()[: len(cut.read_bytes()) // 2])
    ask = ("ask", cut, "What?", "--model", home / "model", "--max-new-tokens", 2)
    one_line(run(*ask), "cut.mkv", "; --salvage takes what can be decoded")
    code, out, err = run(*ask, "--salvage")
    assert code == 0
    assert out.strip()
    words = (
        r"\d+ frames of the video are missing or damaged \(an estimate .*\); (\d+) were looked at"
    )
    found = re.fullmatch(words, err.strip())
    assert found
    assert int(found[1]) < 6
    assert run(*ask, "--salvage", "--quiet") == (0, out, "")
    # the first image decides the size
    images = tmp_path / "images"
    images.mkdir()
    for number, size in enumerate([(64, 48), (64, 48), (48, 64)]):
        Image.new("RGB", size).save(images / f"{number}.png")
    code, _, err = run("ask", images, *ask[2:], "--salvage")
    assert code == 0
    assert re.match(r"1 frame of the video is missing or damaged \(.*\); 2 were looked at$", err)


def tiny_frames():
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        yield torch.randint(256, (48, 64, 3), generator=generator, dtype=torch.uint8)


def test_what_was_mended_is_said_beside_the_answer(run, home, tmp_path):
    """A film written twice behind itself, whose clock starts anew in the middle."""
    part, joined = tmp_path / "part.ts", tmp_path / "joined.ts"
    write_video(part, (torch.zeros(32, 32, 3, dtype=torch.uint8) for _ in range(10)), 5)
    joined.write_bytes(part.read_bytes() * 2)
    ask = ("ask", joined, "What?", "--model", home / "model", "--max-new-tokens", 2)
    code, _, err = run(*ask)
    assert code == 0
    assert ": the time stamps start anew in 1 place" in " ".join(err.split())
    assert run(*ask, "--quiet")[2] == ""
    (note,) = json.loads(run(*ask, "--json")[1])["notes"]
    assert "start anew" in note


def test_evidence_is_drawn_and_compared_with_a_neutral_question(run, home, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "new" / "out.png"
    given = ("ask", home / "video.mp4", "What?", "--model", home / "model", "--max-new-tokens", 2)
    code, out, _ = run(*given, "--evidence", picture, "--json")
    found = json.loads(out)["evidence"]
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(found["mass"]) == len(found["control"]) == len(found["seconds"]) == 6
    assert abs(sum(found["mass"]) + found["text_mass"] - 1) < 1e-6
    code, out, _ = run(*given, "--json")
    assert json.loads(out)["evidence"] == found | {"control": None}


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(
    run, home, tmp_path, monkeypatch
):
    given = ("ask", home / "video.mp4", "What?", "--model", home / "model")
    one_line(run(*given, "--evidence", tmp_path), "--evidence must be a file, got the directory")
    none = run(*given, "--evidence", tmp_path / "out.png", "--stages", "none")
    one_line(
        none, "--evidence must be left out for a model without a stage that selects by attention"
    )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    missing = run(*given, "--evidence", tmp_path / "out.png")
    one_line(missing, "matplotlib must be installed, got none; install timeviper-fast[plot]")
    assert not list(tmp_path.iterdir())
