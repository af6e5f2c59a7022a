"""The command line as a stranger meets it: what it prints, and one clear line per mistake."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import sys
from contextlib import nullcontext

import pytest
import torch
from PIL import Image
from rich.console import Console

import tvkernels
from tests.contract import NOT_OPS
from tests.model.checkpoints import assert_same, llm_directory, siglip_tower, vlm_state
from tests.model.goldens import TRANSV, tiny_backbone
from timeviper_fast import TimeViper
from timeviper_fast.cli import ask as cli_ask
from timeviper_fast.cli import convert as cli_convert
from timeviper_fast.cli import demo as cli_demo
from timeviper_fast.cli import inspect as cli_inspect
from timeviper_fast.cli import main as cli_main
from timeviper_fast.cli import terminal
from timeviper_fast.demo import tiny_model, write_demo_video
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.video import write_video


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a tiny model and a short video."""
    home = tmp_path_factory.mktemp("home")
    tiny_model().save_pretrained(home / "model")
    write_demo_video(home / "video.mp4", seconds=6, fps=5, height=48, width=64)
    return home


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["timeviper-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli_main.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def test_ask_prints_the_answer_and_nothing_else(run, home):
    code, out, err = run(
        "ask", home / "video.mp4", "What moves?", "--model", home / "model", "--max-new-tokens", 4
    )
    assert (code, err) == (0, "")
    assert len(out.strip()) >= 1


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


def test_out_of_memory_is_one_line_with_a_remedy(run, home, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. ...")

    monkeypatch.setattr(cli_ask, "answer", full)
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model")
    one_line(run(*ask), "ran out of memory", "--frame-batch", "--sample")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA says")
def test_a_device_that_is_not_here(run, home):
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", "--device", "cuda")
    one_line(run(*ask), "device must be one that is here (no CUDA device), got 'cuda'")


def test_info_of_a_preset_and_of_a_directory(run, home):
    code, out, _ = run("info", "nemotron-nano-9b-v2", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["tokens_per_frame"] == 16
    assert facts["llm_parameters"] == 8_888_227_328 + 2 * (55_050_240 + 1)
    code, out, _ = run("info", home / "model")
    assert code == 0
    assert "before layer 8: attention, keep 0.1, transfer" in " ".join(out.split())


def test_doctor_lists_every_op(run):
    code, out, _ = run("doctor", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {row["kernel"] for row in rows} >= {"ssd", "tome", "attention_topk"}
    assert all(row["reason"] for row in rows)
    code, out, _ = run("doctor")
    assert code == 0
    assert f"torch {torch.__version__}" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    for name in set(tvkernels.__all__) - NOT_OPS:
        if inspect.isfunction(getattr(tvkernels, name)):
            assert "plain PyTorch" in lines[name]
    assert "causal_conv1d, ssd, rmsnorm" in out
    # and, in a second table, who provides what models call
    assert lines["mamba_ssm"].split() == ["mamba_ssm", "layernorm_fn", "not", "installed"]
    assert "plain PyTorch" in lines["transformers"]


def test_doctor_says_what_to_type_where_an_op_cannot_run(run, monkeypatch):
    row = tvkernels.OpBackend("tome_merge", "tome", "cuda", "unavailable", "it has no kernel")
    monkeypatch.setattr(cli_inspect, "explain", lambda: [row])
    assert "--backend reference (plain PyTorch) or --device cpu" in run("doctor")[1]


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 40 columns."""
    for name in ("out", "err"):
        console = Console(stderr=name == "err", force_terminal=True, width=40, color_system=None)
        for module in (cli_ask, cli_demo, cli_inspect, cli_main, terminal):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, console)


@pytest.mark.usefixtures("narrow")
def test_a_narrow_terminal_breaks_no_name(run, home):
    _, doctor, _ = run("doctor")
    assert {row.op for row in tvkernels.explain()} <= set(doctor.splitlines())
    _, info, _ = run("info", "tiny")
    _, _, stops = run(
        "ask", home / "video.mp4", "What?", "--model", home / "model", "--times",
        "--stream", "--max-new-tokens", 2,
    )  # fmt: skip
    lines = stops.splitlines()
    assert {"decode", "prefill", "  uniform at layer 2", "  attention at layer 8"} <= set(lines)
    assert any(line.startswith("    shape 6 x 3 x 98 x 98, ms ") for line in lines)
    assert max(map(len, [*doctor.splitlines(), *info.splitlines(), *lines])) <= 40


def test_a_pipe_gets_whole_rows(run, home, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = run("doctor")
    assert max(map(len, out.splitlines())) > 80
    _, out, _ = run("info", "tiny")
    assert out.splitlines()[-1].startswith("stages: before layer 2: uniform, ")
    assert out.splitlines()[-1].endswith("before layer 8: attention, keep 0.1, transfer")
    _, _, err = run("demo", home / "video.mp4", "--question", "What moves across it? " * 5)
    assert err.splitlines()[0].endswith("but the answer means nothing.")
    assert err.splitlines()[1] == "Q " + "What moves across it? " * 5


def test_the_stops_end_with_their_total(run, home):
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", "--max-new-tokens", 2)
    _, _, err = run(*ask, "--times")
    head, *rows = [line for line in err.splitlines() if line]
    assert head.endswith(" peak memory so far")
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    times = {name: float(ms.replace(",", "")) for name, *_, ms, _ in cells}
    total = times.pop("total")
    stages = [times.pop(name) for name in ("uniform at layer 2", "attention at layer 8")]
    assert len(times) == 8
    assert abs(total - sum(times.values())) < 0.5
    assert sum(stages) <= times["prefill"] + 0.1


def test_version(run):
    assert run("--version") == (0, f"timeviper-fast {tvkernels.__version__}\n", "")


def test_demo_writes_a_video_and_shows_the_stops(run, tmp_path):
    code, out, err = run("demo", "--directory", tmp_path / "demo", "--seconds", 3)
    assert code == 0
    assert out.strip()
    assert "random" in err
    assert "prefill" in err
    assert os.listdir(tmp_path / "demo") == ["demo-3s.mp4"]


def test_demo_takes_a_video_and_a_question_of_ones_own(run, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("demo", home / "video.mp4", "--question", "Where is [it]?", "--json")
    assert code == 0
    assert len(json.loads(out)["frame_seconds"]) == 6
    said = " ".join(err.split())
    assert "video.mp4: 6 s of video. The model is tiny and its weights are random (seeded)" in said
    assert "Q Where is [it]?" in said
    assert os.listdir(tmp_path) == []
    one_line(run("demo", home / "video.mp4", "--question", " "), "must not be empty or blank")
    one_line(run("demo", home / "nothing.mp4"), "nothing.mp4: no such file or directory")


def test_demo_without_the_video_library_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    one_line(run("demo", "--directory", tmp_path / "demo"), 'pip install "timeviper-fast[video]"')
    assert os.listdir(tmp_path) == []


def one_line(result, *words):
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


def edited(home, tmp_path, edit):
    """The tiny model with another config.json."""
    target = tmp_path / "edited"
    shutil.copytree(home / "model", target)
    config = json.loads((target / "config.json").read_text())
    edit(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


class TestMistakes:
    def test_a_directory_that_is_no_model(self, run, home, tmp_path):
        ask = ("ask", home / "video.mp4", "What?", "--model", tmp_path)
        one_line(
            run(*ask), f"path must be a model's directory (with a config.json), got {tmp_path}"
        )

    def test_what_convert_cannot_take(self, run, home, tmp_path):
        one_line(
            run("convert", tmp_path / "new", "--llm", home / "model"),
            "--llm must be the language model's Hugging Face directory",
            f"got {home / 'model'}, a timeviper_fast checkpoint already",
        )
        llm = llm_directory(tmp_path / "llm")
        one_line(
            run("convert", tmp_path / "new", "--llm", llm, "--merge", "no_merge"),
            "--merge must be left out without pdrop (config.json has its own), got no_merge",
        )
        assert os.listdir(tmp_path) == ["llm"]

    @pytest.mark.parametrize("temperature", [0, 1])
    def test_weights_that_are_no_numbers(self, run, home, tmp_path, temperature):
        model = tiny_model()
        with torch.no_grad():
            model.backbone.norm_f.weight[0] = float("nan")
        model.save_pretrained(tmp_path / "nan")
        ask = ("ask", home / "video.mp4", "What?", "--model", tmp_path / "nan")
        one_line(
            run(*ask, "--temperature", temperature),
            "logits must be finite, got NaN or infinity in float32",
        )

    def test_wrong_paths(self, run, home):
        ask = ("ask", home / "nothing.mp4", "What?", "--model", home / "model")
        one_line(run(*ask), "nothing.mp4: no such file or directory")
        ask = ("ask", home / "video.mp4", "What?", "--model", home / "nothing")
        one_line(run(*ask), "nothing")

    def test_no_video_stream(self, run, home, tmp_path):
        text = tmp_path / "notes.mp4"
        text.write_text("not a video")
        one_line(run("ask", text, "What?", "--model", home / "model"), "notes.mp4")

    def test_a_question_of_no_length(self, run, home):
        ask = ("ask", home / "video.mp4", " ", "--model", home / "model")
        one_line(run(*ask), "question must not be empty or blank")

    def test_a_question_that_is_no_utf8(self, run, home):
        ask = ("ask", home / "video.mp4", "O\udcf9?", "--model", home / "model")
        one_line(run(*ask), "question must be valid UTF-8 text, got 'O\\udcf9?'")
        ask = ("ask", home / "video.mp4", "Where?", "--model", home / "model")
        one_line(run(*ask, "--answer-prefix", "\udcf9"), "--answer-prefix must be valid UTF-8")

    @pytest.mark.parametrize(
        ("words", "named"),
        [
            (("ask", "", "What?", "--model", "model"), "'video': must not be empty"),
            (("ask", "video.mp4", "What?", "--model", ""), "'--model': must not be empty"),
            (("info", ""), "MODEL must be a preset (nemotron-nano-9b-v2, "),
            (("info", "nope"), "tiny), a model directory or a Hub id (owner/name), got 'nope'"),
            (("convert", "", "--llm", "x"), "'output': must not be empty"),
            (("convert", "new", "--llm", ""), "'--llm': must not be empty"),
            (("convert", "new", "--llm", "x", "--vlm", " "), "'--vlm': must not be empty"),
            (("demo", "--seconds", 0), "'--seconds'"),
        ],
    )
    def test_what_is_left_empty_is_not_the_current_directory(
        self, run, home, monkeypatch, words, named
    ):
        monkeypatch.chdir(home / "model")
        one_line(run(*words), named)

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
            (("--dtype", "int8"), "'int8' is not one of 'bfloat16', 'float16', 'float32'"),
            (("--backend", "cuda"), "'cuda' is not one of 'reference', 'triton'"),
        ],
    )
    def test_cheap_mistakes_are_found_before_anything_is_read(
        self, run, home, monkeypatch, mistake, words
    ):
        def read(*args, **kwargs):
            pytest.fail("the model or the video is read")

        monkeypatch.setattr(TimeViper, "from_pretrained", read)
        monkeypatch.setattr(cli_ask, "open_video", read)
        ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", *mistake)
        one_line(run(*ask), words)
        ask = ("ask", home / "video.mp4", "", "--model", home / "model")
        one_line(run(*ask), "question must not be empty or blank")

    def test_an_op_that_cannot_run_names_the_options(self, run, home):
        ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", "--backend", "triton")
        result = run(*ask)
        one_line(result, "; --backend reference (plain PyTorch) or --device cpu runs it")
        assert "use_backend" not in result[2]

    @pytest.mark.parametrize("parent", ["file", "/proc"])
    def test_convert_knows_first_whether_it_can_write(self, run, tmp_path, monkeypatch, parent):
        if parent == "/proc" and not os.path.isdir(parent):
            pytest.skip("a directory where nobody can write")
        (tmp_path / "file").touch()
        monkeypatch.setattr(cli_convert, "upstream_config", lambda *_, **__: pytest.fail("read"))
        target = os.path.join(tmp_path, parent, "new")
        one_line(
            run("convert", target, "--llm", tmp_path),
            f"directory must be one that can be written ({os.path.dirname(target)}: ",
            f"got {target}",
        )
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize(
        ("stage", "words"),
        [
            ({"keep": 0}, "keep must lie in (0, 1], got 0"),
            ({"keep": 1.5}, "keep must lie in (0, 1], got 1.5"),
            ({"layer": 40}, "layer must be at most 11, the last layer, got 40"),
            ({"layer": 2, "select": "attention"}, "layer must be an attention layer (3, 8)"),
        ],
    )
    def test_stages_that_cannot_be(self, run, home, tmp_path, stage, words):
        model = edited(home, tmp_path, lambda config: config["stages"][0].update(stage))
        one_line(run("ask", home / "video.mp4", "What?", "--model", model), words)

    def test_a_checkpoint_of_another_size(self, run, home, tmp_path):
        def widen(config):
            config["backbone"]["intermediate_size"] *= 2

        model = edited(home, tmp_path, widen)
        one_line(run("ask", home / "video.mp4", "What?", "--model", model), "up_proj.weight")

    def test_a_prompt_longer_than_the_window(self, run, home, tmp_path):
        def narrow(config):
            config["backbone"]["max_position_embeddings"] = 64

        model = edited(home, tmp_path, narrow)
        one_line(run("ask", home / "video.mp4", "What?", "--model", model), "window of 64 tokens")

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
    def test_options(self, run, home, option, words):
        ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", *option)
        one_line(run(*ask), words)

    def test_converting_onto_something_else(self, run, home, tmp_path):
        (tmp_path / "precious.txt").write_text("keep me")
        one_line(
            run("convert", tmp_path, "--llm", home / "model"), "directory must be new or empty"
        )
        assert os.listdir(tmp_path) == ["precious.txt"]

    @pytest.mark.parametrize(
        "words", [("info", "tiny"), ("ask", "v.mp4", "What?", "--model", "m"), ("--version",), ()]
    )
    def test_nobody_would_hear_the_answer(self, run, monkeypatch, words):
        """Where standard output is closed, as by >&-, Python has none."""
        monkeypatch.setattr(sys, "stdout", None)
        one_line(run(*words), "standard output must be open, got it closed; >/dev/null drops it")

    def test_an_unknown_command(self, run):
        one_line(run("answer"), "answer", " --help")

    def test_debug_shows_the_traceback(self, monkeypatch, home):
        arguments = ["ask", str(home / "no.mp4"), "?", "--model", str(home / "model"), "--debug"]
        monkeypatch.setattr(sys, "argv", ["timeviper-fast", *arguments])
        with pytest.raises(FileNotFoundError):
            cli_main.main()


def test_no_words_at_all_are_a_cry_for_help(run):
    assert run() == run("--help")
    code, out, err = run()
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[-5:]] == [
        "ask", "info", "doctor", "convert", "demo",
    ]  # fmt: skip


def test_convert_says_what_it_takes(run):
    code, out, _ = run("convert", "--help")
    words = " ".join(out.split())
    assert code == 0
    assert "Upstream's id of the vision backbone, or a SigLIP directory." in words
    assert "Of the weights written. [default: bfloat16]" in words


def test_convert_makes_one_directory_of_upstreams_parts(run, home, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(
        cli_convert, "progress_bars", lambda *_, **__: nullcontext(lambda *step: steps.append(step))
    )
    llm = llm_directory(tmp_path / "llm", merge=False)
    byte_tokenizer().save_pretrained(llm)
    torch.save(vlm_state(), tmp_path / "vlm.bin")
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(siglip_tower().config.to_dict()))
    code, _, err = run(
        "convert", tmp_path / "model", "--llm", llm, "--vlm", tmp_path / "vlm.bin",
        "--vision", tower, "--arch", "tome_mlp-4", "--pdrop", "uni_5_0.5-attn_8_0.2",
        "--dtype", "float32",
    )  # fmt: skip
    assert code == 0, err
    assert {name for name, done, total in steps if done == total > 0} == {"read", "written"}
    code, out, _ = run("info", tmp_path / "model", "--json")
    facts = json.loads(out)
    assert facts["tokens_per_frame"] == 4
    assert facts["stages"].endswith("before layer 8: attention, keep 0.2, transfer")
    model = TimeViper.from_pretrained(tmp_path / "model", device="cpu")
    assert_same(model.backbone, dict(tiny_backbone(TRANSV).state_dict()))
    # these parts never belonged together: the golden model knows 97 tokens, bytes are 256
    ask = ("ask", home / "video.mp4", "What?", "--model", tmp_path / "model")
    one_line(run(*ask), "tokenizer must give ids below the model's vocabulary size (97), got")


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
    # the first image decides the size
    for number, size in enumerate([(64, 48), (64, 48), (48, 64)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    code, _, err = run("ask", tmp_path, *ask[2:], "--salvage")
    assert code == 0
    assert re.match(r"1 frame of the video is missing or damaged \(.*\); 2 were looked at$", err)


def tiny_frames():
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        yield torch.randint(256, (48, 64, 3), generator=generator, dtype=torch.uint8)
