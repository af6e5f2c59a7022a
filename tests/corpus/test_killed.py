"""Forty videos of five questions; killed processes and a full disk: one record each, equal bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.corpus.common import corpus
from tests.random_model import tiny_model
from timeviper_fast.corpus.collect import collect
from timeviper_fast.corpus.records import Records

RUN = ("run", "questions.jsonl", "--model", "MODEL", "--max-new-tokens", "2", "--sample", "fps:1")
# reading this video ends the process, where the environment says so
POISON = """
import os, signal
import numpy as np
load = np.load
def loaded(path, *args, **kwargs):
    if os.environ.get("POISON") and os.path.basename(str(path)) == os.environ["POISON"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return load(path, *args, **kwargs)
np.load = loaded
"""


@pytest.fixture
def home(tmp_path):
    tiny_model().save_pretrained(tmp_path / "MODEL")
    corpus(tmp_path, videos=40, questions=5)
    (tmp_path / "sitecustomize.py").write_text(POISON)
    return tmp_path


def start(home: Path, out: str, *words: str, poison: str = "7.npy"):
    """A process of the command line, in a session of its own."""
    command = [sys.executable, "-m", "timeviper_fast", "corpus", *RUN, "--out", out, *words]
    path = f"{home}:{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PYTHONPATH": path, "POISON": poison, "OMP_NUM_THREADS": "1"}
    error = (home / "error.txt").open("a")
    return subprocess.Popen(command, cwd=home, stderr=error, env=env, start_new_session=True)


def wait_for(home: Path, out: str, records: int, *processes) -> None:
    """Until a folder has so many records."""
    while len([*(home / out / "records").rglob("[!.]*.json")]) < records:
        assert any(process.poll() is None for process in processes), "it ended too early"
        time.sleep(0.02)


def actors(home: Path) -> list[int]:
    """Processes of Ray's actors that answer for this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_actor = place.joinpath("cmdline").read_bytes().startswith(b"ray::MapWorker")
            if is_actor and str(home).encode() in place.joinpath("environ").read_bytes():
                found.append(int(place.name))
    return found


def check(home: Path, out: str) -> None:
    """Every id has one record, with the bytes of a run that nothing stopped."""
    records, whole = Records(home / out), Records(home / "whole")
    errors = {record["id"] for record in records if record["error"]}
    assert errors == {"video-7", "broken.mp4"}
    assert len([*(home / out / "records").rglob("*.json")]) == 41
    assert records.attempts.open() == 0
    # without the poison its video is answered
    assert start(home, "whole", poison="").wait(timeout=300) == 0
    for folder in (records, whole):
        collect(folder, folder.folder / "all.jsonl")
    one, other = (
        [x for x in (f.folder / "all.jsonl").open() if '"video-7"' not in x]
        for f in (records, whole)
    )
    assert one == other
    assert len(one) == 196


@pytest.mark.long
def test_processes_are_killed(home):
    """Two are killed, one is interrupted, and the poison ends two more; then two at a time."""
    for records, number in ((2, signal.SIGKILL), (4, signal.SIGKILL), (6, signal.SIGINT)):
        process = start(home, "out")
        wait_for(home, "out", records, process)
        process.send_signal(number)
        assert process.wait(timeout=60)
    assert start(home, "out").wait(timeout=60) == -signal.SIGKILL
    for _ in range(2):
        codes = [p.wait(timeout=300) for p in [start(home, "out") for _ in range(2)]]
    assert codes == [0, 0], (home / "error.txt").read_text()
    check(home, "out")


@pytest.mark.long
def test_actors_and_a_driver_of_ray_are_killed(home):
    """Of the real Ray, where it is installed."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    driver = start(home, "out", "--ray", "2")
    for records in (3, 8):
        wait_for(home, "out", records, driver)
        os.kill(actors(home)[0], signal.SIGKILL)
    wait_for(home, "out", 12, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert start(home, "out", "--ray", "2").wait(timeout=300) == 0, (home / "error.txt").read_text()
    check(home, "out")


FULL = """
mount -t tmpfs -o size=100k none small && cd small || exit 1
run() { (cd .. && "$@" --out small/out) }
run "$@"; [ $? = 2 ] || exit 2
ls out/records/*/*.json | wc -l >../first
mount -o remount,size=4m none . && run "$@" || exit 3
cp -r out ../out
"""


@pytest.mark.long
def test_a_disk_is_full(home):
    """A real file system of 100 kB, then of 4 MB; in a namespace, where a user may mount one."""
    (home / "small").mkdir()
    command = [sys.executable, "-m", "timeviper_fast", "corpus", *RUN, "--quiet"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [home, Path.cwd()]))}
    shell = ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL, "sh", *command]
    done = subprocess.run(shell, cwd=home, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < int((home / "first").read_text()) < 41
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert start(home, "whole", poison="").wait(timeout=300) == 0
    for folder in ("out", "whole"):
        collect(Records(home / folder), home / f"{folder}.jsonl")
    assert (home / "out.jsonl").read_bytes() == (home / "whole.jsonl").read_bytes()
