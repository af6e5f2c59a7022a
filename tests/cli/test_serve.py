"""The command serve: the server as a process, and its mistakes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import httpx2 as httpx

from tests.architecture.common import ROOT
from tests.cli.common import one_line
from timeviper_fast.cli.serve import KEY
from timeviper_fast.timeviper import TimeViper


def test_the_process_answers_until_it_is_stopped(home):
    words = ["serve", "--media-root", str(home), "--model", str(home / "model"), "--port", "0"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
        KEY: "k",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "timeviper_fast", *words, "--sample", "fps:1", *2 * ["--device", "cpu"], "--backend", "reference"],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        address = next(
            found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line))
        )
        content = [
            {"type": "video_url", "video_url": {"url": "video.mp4"}}, {"type": "text", "text": "What?"},
        ]  # fmt: skip
        body = {
            "model": "model",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 4,
        }
        response = httpx.post(
            f"{address}/v1/chat/completions", json=body, headers={"Authorization": "Bearer k"}, timeout=60,
        )  # fmt: skip
        alone = TimeViper.from_pretrained(home / "model").ask(
            home / "video.mp4", "What?", policy="fps:1", max_new_tokens=4
        )
        assert response.json()["choices"][0]["message"]["content"] == alone.text
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}
        process.send_signal(signal.SIGINT)
        log = process.communicate(timeout=20)[1]
        assert process.returncode == 130
        assert "Traceback" not in log
    finally:
        process.kill()


def test_mistakes_are_one_line_before_the_weights_are_loaded(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr(TimeViper, "from_pretrained", None)
    words = ["serve", "--media-root", "."]
    one_line(run("serve"), "--media-root")
    one_line(run("serve", "--media-root", "gone"), "--media-root must be a folder, got gone")
    one_line(run(*words, "--host", "0.0.0.0"), "--host must be one of 127.0.0.1", f"set {KEY}")
    one_line(run(*words, "--session-gb", 0), "--session-gb must be a number above 0")
    one_line(run(*words, "--max-upload-mb", "nan"), "--max-upload-mb must be a number above 0")
    one_line(run(*words, "--max-megapixels", 0), "--max-megapixels must be a number above 0")
    one_line(run(*words, "--time-limit", -1), "--time-limit must be a number above 0")
    one_line(run(*words, "--max-new-tokens", 0), "--max-new-tokens")
    one_line(run(*words, "--sample", "often"), "--sample must")
    one_line(run(*words, "--queue", 0), "--queue")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one_line(
            run(*words, "--port", port), "--port must be free to listen at 127.0.0.1 (", f"{port}"
        )
    monkeypatch.setenv(KEY, " \n")
    one_line(run(*words, "--host", "0.0.0.0"), "--host must be one of 127.0.0.1", f"set {KEY}")


def test_without_fastapi_the_remedy_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    words = run("serve", "--media-root", tmp_path)
    one_line(words, "FastAPI and uvicorn must be installed", "timeviper-fast[serve]")
