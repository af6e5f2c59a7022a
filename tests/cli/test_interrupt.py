"""Ctrl-C at any moment: one line, exit code 130, and nothing half-written; the end of a job too.

Each case waits until the moment is there, so none depends on how fast the machine is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoint.parts import llm_directory, siglip_tower, vlm_state
from tests.random_model import square_video, tiny_model
from timeviper_fast.text.byte_tokenizer import byte_tokenizer

ROOT = Path(__file__).parents[2]
MAIN = "from timeviper_fast.__main__ import main; main()"


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def interrupted(tmp_path_factory):
    """Interrupt the command line once `when` holds; what it had written to standard output."""
    said = tmp_path_factory.mktemp("said") / "out"

    def interrupted(
        *arguments: object,
        when: Callable[[str], bool],
        code: str = MAIN,
        path: Path = ROOT,
        by: signal.Signals = signal.SIGINT,
    ) -> str:
        with said.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"},
                # a run in the background ignores SIGINT, and its children would too
                preexec_fn=heed_interrupts,
            )
        try:
            deadline = time.monotonic() + 120
            while not when(said.read_text()):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "the moment never came"
                time.sleep(0.02)
            process.send_signal(by)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        said_so = (130, "timeviper-fast: interrupted\n") if by == signal.SIGINT else (143, "")
        assert (process.returncode, err) == said_so
        return said.read_text()

    return interrupted


@pytest.mark.parametrize("library", ["torch", "typer"])
def test_during_the_imports(interrupted, tmp_path, library):
    """Also where a library would report the interrupt as an import failure."""
    begun = tmp_path / "begun"
    (tmp_path / f"{library}.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        "try:\n    time.sleep(60)\n"
        "except BaseException as error:\n    raise SystemError('initialisation failed') from error\n"
    )
    ask = ("ask", "x", "y", "--model", "m")
    out = interrupted(*ask, when=lambda _: begun.exists(), path=tmp_path)
    assert out == ""


def test_while_an_answer_is_written(interrupted, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    video = square_video(tmp_path / "video.mp4", seconds=3, fps=5, height=48, width=64)
    before = sorted(tmp_path.rglob("*"))

    out = interrupted(
        "ask", video, "What?", "--model", tmp_path / "model",
        "--stream", "--max-new-tokens", 200_000, when=bool,
    )  # fmt: skip
    # the streamed answer ends its line first, so the message has its own line
    assert out.count("\n") == 1
    assert out.endswith("\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_while_a_model_is_written(interrupted, tmp_path):
    llm = llm_directory(tmp_path / "llm", merge=False)
    byte_tokenizer().save_pretrained(llm)
    (tmp_path / "out").mkdir()
    # a disk that never finishes
    slow = (
        "import time, safetensors.torch as files\n"
        "def save_file(tensors, path):\n"
        "    path.write_bytes(b'half')\n"
        "    time.sleep(60)\n"
        "files.save_file = save_file\n"
    )

    torch.save(vlm_state(), tmp_path / "vlm.bin")
    tower = tmp_path / "tower"
    siglip_tower().config.save_pretrained(tower)
    interrupted(
        "convert", tmp_path / "out" / "model", "--llm", llm, "--vlm", tmp_path / "vlm.bin",
        "--vision", tower, "--arch", "tome_mlp-4", "--pdrop", "uni_5_0.5-attn_8_0.2",
        code=slow + MAIN, when=lambda _: any((tmp_path / "out").rglob("*.safetensors")),
    )  # fmt: skip
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_while_a_video_is_written(interrupted, tmp_path, by):
    demo = tmp_path / "demo"
    out = interrupted(
        "demo", "--seconds", 3600, "--directory", demo,
        when=lambda _: demo.is_dir() and bool(os.listdir(demo)), by=by,
    )  # fmt: skip
    assert out == ""
    assert os.listdir(demo) == []
