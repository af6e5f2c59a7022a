"""The page of the commands demo and serve: as a process, and their mistakes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib import util

import httpx2 as httpx
import pytest

from tests.architecture.common import ROOT
from tests.cli.common import one_line
from timeviper_fast.cli import page, serve
from timeviper_fast.cli.serve import KEY
from timeviper_fast.demo import DemoVideo
from timeviper_fast.timeviper import TimeViper


@pytest.fixture
def started():
    """Starts the program; the address that it prints, and the process, which ends with the test."""
    processes = []

    def start(*words, **more):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
            **more,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "timeviper_fast", *map(str, words)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        processes.append(process)
        return next(
            found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line))
        ), process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_demo_s_page_has_its_video_and_questions_until_it_is_stopped(started, tmp_path):
    """The key of a server does not matter here: the page is for this machine."""
    address, process = started(
        "demo",
        "--page",
        "--port",
        0,
        "--directory",
        tmp_path,
        "--seconds",
        32,
        "--seed",
        3,
        **{KEY: "k"},
    )
    assert address.startswith("http://127.0.0.1:")
    assert "<title>Ask a video</title>" in httpx.get(address).text
    told = httpx.get(f"{address}/page/start").json()
    assert [video["name"] for video in told["videos"]] == ["demo-3-32s.mp4"]
    questions = DemoVideo(3, 32).questions
    assert told["examples"] == {"demo-3-32s.mp4": [question.text for question in questions]}
    assert (told["model"], told["remember"]) == ("timeviper-fast/tiny", False)
    part = {"type": "video_url", "video_url": {"url": "demo-3-32s.mp4"}}
    content = [part, {"type": "text", "text": questions[0].text}]
    body = {"model": told["model"], "messages": [{"role": "user", "content": content}]}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == questions[0].answer
    process.send_signal(signal.SIGINT)
    log = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "Traceback" not in log


@pytest.fixture
def listened(monkeypatch):
    """The servers that commands would run."""
    from timeviper_fast.serve.listen import Listener

    servers = []
    made = Listener.__init__

    def init(self, server, host, port, *rest):
        servers.append((server, host, port))
        made(self, server, host, port, *rest)

    monkeypatch.setattr(Listener, "__init__", init)
    monkeypatch.setattr(Listener, "run", lambda self: None)
    return servers


def test_a_folder_of_ones_own_is_listed_and_nothing_is_written(
    run, tmp_path, monkeypatch, listened
):
    monkeypatch.chdir(tmp_path)
    assert run("demo", "--page", "--media-root", ".", "--port", 81)[0] == 0
    ((server, host, port),) = listened
    assert (server.media.root, host, port) == (tmp_path, "127.0.0.1", 81)
    assert server.hosts == {"127.0.0.1", "localhost", "::1", "[::1]"}
    assert (server.key, dict(server.page.examples)) == ("", {})
    assert os.listdir(tmp_path) == []


def test_serve_has_a_page_when_it_is_asked_for(run, home, monkeypatch, listened):
    monkeypatch.delenv(KEY, raising=False)
    words = ["serve", "--media-root", home, "--model", home / "model", "-q"]
    assert (
        run(*words)[0]
        == run(*words, "--page")[0]
        == run("serve", "--media-root", home, "--page", "-q")[0]
        == 0
    )
    pages = [server.page for server, *_ in listened]
    assert pages[0] is None
    # the embedded model has learnt from single questions
    assert [one.remember for one in pages[1:]] == [True, False]


def test_options_that_contradict_each_other_are_refused(run, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TimeViper, "from_pretrained", None)
    video = home / "video.mp4"
    one_line(run("demo", video, "--page"), "video must be given without --page")
    one_line(run("demo", "--page", "--json"), "--json must be given without --page")
    one_line(run("demo", "--page", "--question", "?"), "--question must be given without --page")
    one_line(run("demo", "--port", 1), "--port must be given with --page, got 1")
    one_line(run("demo", "--media-root", "."), "--media-root must be given with --page")
    one_line(
        run("demo", "--page", "--media-root", "gone"), "--media-root must be a folder, got gone"
    )
    for option, value in (("--seed", 4), ("--seconds", 50), ("--directory", "x")):
        words = run("demo", "--page", "--media-root", ".", option, value)
        one_line(words, f"{option} must be given without --media-root, got")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("package", "name"), [("fastapi", "FastAPI and uvicorn"), ("PIL", "Pillow")]
)
def test_what_is_missing_is_told_before_a_video_is_written(
    run, tmp_path, monkeypatch, package, name
):
    found = util.find_spec
    missing = lambda asked: None if asked == package else found(asked)  # noqa: E731
    monkeypatch.setattr(serve, "find_spec", missing)
    told = f"{name} must be installed, got none; install timeviper-fast[page]"
    one_line(run("demo", "--page", "--directory", tmp_path), told)
    one_line(run("serve", "--media-root", tmp_path, "--page"), told)
    assert os.listdir(tmp_path) == []
    assert page.serve_page
