"""The command session list: what files say about themselves, without a model and without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.common import one_line
from tests.random_model import tiny_model
from timeviper_fast.cli.session import format_of


@pytest.fixture(scope="module")
def library(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    tiny_model().open(home / "video.mp4", policy="fps:1", chunk=64).save(folder / "a.session")
    whole = (folder / "a.session").read_bytes()
    (folder / "cut.session").write_bytes(whole[:-1])
    (folder / "texts.session").write_bytes(whole.replace(b'\\"fps:1\\"', b'\\"fps:1  '))
    (folder / "note.txt").write_text("mine")
    (folder / ".a.123.partial.session").write_bytes(whole)
    (folder / "plain").write_bytes(whole)
    return folder


def test_the_table_tells_whole_files_from_damaged_ones(run, library):
    code, out, _ = run("session", "list", library)
    assert code == 0
    rows = [" ".join(line.split()) for line in out.splitlines()]
    size = f"{os.path.getsize(library / 'a.session') / 1e6:,.1f} MB"
    assert any(row.startswith(f"a.session 6 0:00:06 {size} video.mp4 ") for row in rows)
    assert any(row.startswith("cut.session") and row.endswith("damaged") for row in rows)
    assert any(row.startswith("texts.session") and row.endswith("damaged") for row in rows)
    assert any(row.startswith("plain 6 ") for row in rows)
    assert len(rows) == 5 + ("---" in out or "─" in out)


def test_the_json_object_has_everything(run, library, home):
    code, out, _ = run("session", "list", library, "--json")
    assert code == 0
    told = {Path(one["file"]).name: one for one in json.loads(out)}
    assert list(told) == ["a.session", "cut.session", "plain", "texts.session"]
    a = told["a.session"]
    assert (a["state"], a["level"], a["frames"], a["dtype"]) == ("whole", "session", 6, "float32")
    assert a["video"]["name"] == str(home / "video.mp4")
    assert a["policy"] == "fps:1"
    assert len(a["fingerprint"]) == 64
    assert told["cut.session"]["state"] == told["texts.session"]["state"] == "damaged"


def test_no_torch_is_imported(library):
    code = (
        "import sys; from timeviper_fast.cli.main import app\n"
        f"sys.argv = ['x', 'session', 'list', {str(library)!r}, '--json']\n"
        "app(standalone_mode=False); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_files_are_known_by_their_content(library):
    levels = {name: format_of(library / name) for name in os.listdir(library)}
    known = {"a.session", "cut.session", "texts.session", "plain", ".a.123.partial.session"}
    assert {name for name, level in levels.items() if level == "session"} == known
    assert format_of(library) is None
    assert format_of("-") is None


def test_ask_takes_no_options_of_reading(run, library):
    for given, name in (
        (("--sample", "fps:1"), "--sample"),
        (("--start", "1"), "--start"),
        (("--chunk", "8192"), "--chunk"),
        (("--stages", "none"), "--stages"),
        (("--salvage",), "--salvage"),
        (("--tiles",), "--tiles"),
    ):
        result = run("ask", library / "plain", "Why?", *given)
        one_line(result, f"{name} must be left out for", "a video that was read already (session)")
    one_line(run("ask", library / "cut.session", "Why?"), "cut.session must be a session file")
    # the package's own model is another
    one_line(run("ask", library / "a.session", "Why?"), "config.")


def test_mistakes(run, library):
    one_line(run("session", "list", library / "note.txt"), "DIRECTORY must be a directory")
    assert run("session", "list", "--help")[0] == 0
