"""The command watch: questions from standard input about a video that goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.architecture.common import ROOT
from tests.cli.common import one_line
from tests.random_model import square_video
from timeviper_fast.cli.watch import lines
from timeviper_fast.embedded.models import TINY_NOTE

TOKENS = ("--max-new-tokens", 6)


@pytest.fixture
def asked(run, monkeypatch):
    """Run watch with these lines on standard input."""

    def asked(*arguments: object, questions: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(questions))
        return run("watch", *arguments)

    return asked


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A recorded film of the synthetic world, of 12 seconds."""
    path = tmp_path_factory.mktemp("recording") / "film.ts"
    square_video(path, seconds=12, fps=5, height=48, width=48)
    return path


def test_answers_are_those_of_the_finished_file(asked, run, recording):
    options = ("--chunk", 64, "--frame-batch", 4, *TOKENS)
    questions = ["What does the sign say?", "How many circles are there?"]
    code, out, err = asked(
        recording, "--at-end", "--idle", 0.1, *options, questions="\n\n".join(questions)
    )
    assert code == 0, err
    assert out.splitlines() == [
        run("ask", recording, question, "--sample", "fps:1", *options, "-q")[1].strip()
        for question in questions
    ]
    assert err.splitlines()[-1] == f"{recording}: it has ended"
    assert " ".join(err.split()).startswith(" ".join(TINY_NOTE.split()))
    quiet = asked(recording, "--at-end", "--idle", 0.1, *options, "-q", questions=questions[0])
    assert quiet == (0, out.splitlines()[0] + "\n", "")


def test_json_tells_how_far_the_stream_was(asked, recording):
    code, out, err = asked(
        recording, "--at-end", "--idle", 0.1, "--json", "--bounded", "window:5s",
        "--frame-batch", 2, "--chunk", 16, *TOKENS, "-q",
        questions="What is there?\nWhat else?",
    )  # fmt: skip
    assert (code, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert (first["question"], second["question"]) == ("What is there?", "What else?")
    assert (first["frames"], first["second"]) == (12, pytest.approx(12.4, abs=1.5))
    assert (first["waiting_frames"], first["dropped_frames"], first["lost_frames"]) == (0, 0, 0)
    assert (first["exact"], first["finish"] in ("stop", "length")) == (False, True)
    assert len(first["frame_seconds"]) < 12


def test_a_question_that_does_not_fit_is_told_and_the_next_one_answered(asked, recording):
    options = (recording, "--at-end", "--idle", 0.1, "-q", *TOKENS)
    bad = "half a character: \ud800"
    code, out, err = asked(*options, questions=f"{bad}\nWhat is there?")
    assert code == 2
    assert len(out.splitlines()) == 1
    assert len(err.splitlines()) == 1
    assert "valid UTF-8" in err
    code, out, _ = asked(*options, "--json", questions=f"{bad}\nWhat is there?")
    first, second = map(json.loads, out.splitlines())
    assert "valid UTF-8" in first["error"]
    assert second["text"]


def test_a_live_source_is_what_pyav_opens(asked):
    code, out, err = asked(
        "testsrc=rate=5:size=48x48:duration=4", "--live", "--format", "lavfi", "--at-end", "--json",
        *TOKENS, "-q", questions="What is there?",
    )  # fmt: skip
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["frames"], said["second"], said["dropped_frames"]) == (4, 3.0, 0)


def test_mistakes_are_one_line(asked, recording, tmp_path):
    question = "What?"
    one_line(asked(tmp_path / "no.ts", questions=question), "no such file", "live sources")
    one_line(asked(recording, "--sample", "uniform:8", questions=question), "--sample must be fps")
    one_line(asked(recording, "--idle", -1, questions=question), "--idle must be a finite")
    one_line(asked(recording, "--room", 0, questions=question), "--room must be a positive")
    one_line(asked(recording, "--bounded", "2h", questions=question), "--bounded must")
    one_line(
        asked(recording, "--live", "--option", "rate", questions=question),
        "--option must have the form NAME=VALUE",
    )


def test_lines_come_as_they_are_written():
    reading, writing = os.pipe()
    found: list[str] = []
    with os.fdopen(reading, encoding="utf-8") as stream:
        thread = threading.Thread(target=lambda: found.extend(lines(stream)))
        thread.start()
        text = " eins \n\nzw\u00f6lf\nlast".encode()
        for at in range(len(text)):
            os.write(writing, text[at : at + 1])
        end = time.monotonic() + 10
        while found != ["eins", "zw\u00f6lf"]:
            assert time.monotonic() < end
            time.sleep(0.002)
        os.close(writing)
        thread.join(10)
    assert found == ["eins", "zw\u00f6lf", "last"]
    assert list(lines(io.StringIO("a\n \nb"))) == ["a", "b"]


class Growing:
    """Standard input that asks, lets the file grow, asks on, and interrupts the command."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data = path, data
        self.ended = threading.Event()

    def replies(self, enough: Callable[[list[dict]], bool]) -> Iterator[str]:
        end = time.monotonic() + 30
        while not enough([json.loads(line) for line in sys.stdout.getvalue().splitlines()]):
            assert time.monotonic() < end
            yield "And now?\n"
            time.sleep(0.02)

    def __iter__(self) -> Iterator[str]:
        yield "What is there?\n"
        yield from self.replies(lambda said: bool(said))
        with self.path.open("ab") as file:
            file.write(self.data)
        yield from self.replies(lambda said: said[-1]["frames"] >= 50)
        # As a terminal at which nobody types any more. One that falls into a finalizer is lost.
        for _ in range(3):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            if self.ended.wait(5):
                return

    def fileno(self) -> int:
        raise ValueError


def test_a_file_that_grows_and_ctrl_c(run, monkeypatch, recording, tmp_path):
    """Questions see more frames as the file grows; the interrupted command ends in one line."""
    data, path = recording.read_bytes(), tmp_path / "film.ts"
    path.write_bytes(data[: len(data) // 2])
    typed = Growing(path, data[len(data) // 2 :])
    monkeypatch.setattr(sys, "stdin", typed)
    # what runs in the background may have been started without interrupts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    code, out, err = run("watch", path, "--idle", 0, "--json", "--sample", "fps:5", "-q", *TOKENS)
    typed.ended.set()
    signal.signal(signal.SIGINT, before)
    assert (code, err) == (130, "timeviper-fast: interrupted\n")
    said = [json.loads(line) for line in out.splitlines()]
    # all that is written but what the parser and the decoder hold back
    assert 1 <= said[0]["frames"] <= 30
    assert said[-1]["frames"] >= 50
    assert said[-1]["second"] > said[0]["second"]


@pytest.mark.long
def test_the_process_ends_while_it_waits_for_a_question(recording):
    """A thread that sleeps in reading standard input does not keep it from ending."""
    command = [sys.executable, "-m", "timeviper_fast", "watch", str(recording), "--idle", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, "--max-new-tokens", "4"], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        process.stdin.write(b"What is there?\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read().splitlines()[-1] == b"timeviper-fast: interrupted"
