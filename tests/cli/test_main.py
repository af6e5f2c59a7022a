"""The command line itself: version, help, unknown commands, empty words, the traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tvkernels
from tests.cli.common import one_line
from timeviper_fast.cli import main as cli_main


def test_version(run):
    assert run("--version") == (0, f"timeviper-fast {tvkernels.__version__}\n", "")


HEAVY = {"torch", "numpy", "transformers", "tvkernels", "triton", "rich", "av", "PIL"}
COMMANDS = (
    *("ask", "index", "watch", "plan", "train", "train-tiny", "needle", "held-out"),
    *("eval", "analyse", "info", "doctor", "convert", "serve", "demo", "session", "corpus"),
)


def test_help_version_and_completion_import_nothing_heavy():
    """Torch alone takes more than a second to import."""
    lines = [["--help"], ["-h"], ["--version"], [], *([name, "--help"] for name in COMMANDS)]
    code = (
        "import os, sys\n"
        "from timeviper_fast.__main__ import main\n"
        f"for line in {lines}:\n"
        "    sys.argv = ['timeviper-fast', *line]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code\n"
        "words = {'COMP_WORDS': 'timeviper-fast ask --mod', 'COMP_CWORD': '2'}\n"
        "os.environ.update(words, _TIMEVIPER_FAST_COMPLETE='complete_bash')\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.splitlines()[-2:] == ["--model", "[]"], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("d", ["doctor", "demo"]),
        ("ask v.mp4 What? --st", ["--start", "--stages", "--stream"]),
        ("ask v.mp4 What? --dtype b", ["bfloat16"]),
        ("ask v.mp4 What? --sample up", ["upstream"]),
        ("info nemotron-nano-9", ["nemotron-nano-9b-v2"]),
        ("info nemotron-nano-12b-v2-", ["nemotron-nano-12b-v2-vl"]),
        ("info m", ["model/"]),
        # the shell completes file names where nothing is printed
        ("ask vid", []),
    ],
)
def test_completion(run, home, monkeypatch, words, found):
    monkeypatch.chdir(home)
    line = f"timeviper-fast {words}"
    monkeypatch.setenv("_TIMEVIPER_FAST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out.split() == found


def test_a_reader_that_leaves_early_is_no_mistake(run):
    """As `timeviper-fast doctor | head -1` does."""
    line = [sys.executable, "-m", "timeviper_fast", "info", "tiny"]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode not in (0, 2)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_h_is_short_for_help(run, command):
    code, out, err = run(*command, "-h")
    assert (code, err) == (0, "")
    assert out == run(*command, "--help")[1]
    assert "-h, --help" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("ask", "", "What?", "--model", "model"), "'video': must not be empty"),
        (("ask", "video.mp4", "What?", "--model", ""), "'--model': must not be empty"),
        (("info", ""), "MODEL must be a preset (nemotron-nano-9b-v2, "),
        (("info", "nope"), "tiny-trained), a model directory or a Hub id (owner/name), got 'nope'"),
        (("convert", "", "--llm", "x"), "'output': must not be empty"),
        (("convert", "new", "--llm", ""), "'--llm': must not be empty"),
        (("convert", "new", "--llm", "x", "--vlm", " "), "'--vlm': must not be empty"),
        (("demo", "--seconds", 0), "'--seconds'"),
    ],
)
def test_what_is_left_empty_is_not_the_current_directory(run, home, monkeypatch, words, named):
    monkeypatch.chdir(home / "model")
    one_line(run(*words), named)


@pytest.mark.parametrize(
    "words", [("info", "tiny"), ("ask", "v.mp4", "What?", "--model", "m"), ("--version",), ()]
)
def test_nobody_would_hear_the_answer(run, monkeypatch, words):
    """Where standard output is closed, as by >&-, Python has none."""
    monkeypatch.setattr(sys, "stdout", None)
    one_line(run(*words), "standard output must be open, got it closed; >/dev/null drops it")


def test_an_unknown_command(run):
    one_line(run("answer"), "answer", " --help")


def test_debug_shows_the_traceback(monkeypatch, home):
    arguments = ["ask", str(home / "no.mp4"), "?", "--model", str(home / "model"), "--debug"]
    monkeypatch.setattr(sys, "argv", ["timeviper-fast", *arguments])
    with pytest.raises(FileNotFoundError):
        cli_main.main()


def test_no_words_at_all_are_a_cry_for_help(run):
    assert run() == run("--help")
    code, out, err = run()
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[-len(COMMANDS) :]] == [*COMMANDS]
