"""Files of tensors are safetensors, written whole, and say what they hold without torch."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from timeviper_fast.inference import tensor_file
from timeviper_fast.inference.tensor_file import (
    Entry,
    mapped,
    read_header,
    target_of,
    write_tensors,
)

ROWS = torch.randn(1, 5, 3).bfloat16()
TENSORS = {
    "odd": torch.arange(3, dtype=torch.int32),
    "rows": ROWS,
    "none": torch.empty(1, 0, 4),
    "seconds": torch.arange(8, dtype=torch.float64),
}
PARTS = {name: [x] for name, x in TENSORS.items()} | {"rows": [ROWS[:, :2], ROWS[:, 2:]]}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "_PIECE", 5)
    path = tmp_path / "a.session"
    write_tensors(path, PARTS, {"name": "é"})
    return path


def test_other_readers_read_it(path):
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(TENSORS)
        assert file.metadata() == {"name": "é"}
        for name, x in TENSORS.items():
            assert torch.equal(file.get_tensor(name), x)


def test_the_header_is_read_without_torch(path):
    header = read_header(path)
    assert header.texts == {"name": "é"}
    assert header.entries["rows"] == Entry("BF16", (1, 5, 3))
    assert sum(entry.nbytes for entry in header.entries.values()) == 64 + 30 + 12
    code = (
        "import sys; from pathlib import Path\n"
        "from timeviper_fast.inference.tensor_file import read_header\n"
        f"assert read_header(Path({str(path)!r})).texts; assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_damaged_files_have_no_header(path, tmp_path):
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    broken = {
        "empty": b"",
        "short": whole[:-1],
        "long": whole + b"x",
        "cut": whole[: length // 2],
        "no size": b"\xff" * 8 + whole[8:],
        "no json": whole[:9] + b"!" + whole[10:],
        "other json": (8).to_bytes(8, "little") + b"[1,2,3] ",
        "other": b"\x00\x00\x00\x18ftypmp42" + bytes(64),
        "shape": whole.replace(b"[1,5,3]", b"[1,5,4]"),
        "dtype": whole.replace(b'"BF16"', b'"BF17"'),
    }
    for name, content in broken.items():
        other = tmp_path / "other"
        other.write_bytes(content)
        assert read_header(other) is None, name
    words = "path must be a safetensors file that is whole"
    with pytest.raises(ValueError, match=words), mapped(other):
        pass
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "absent")


def test_large_tensors_are_aligned(path):
    with mapped(path) as file:
        assert file.get_tensor("seconds").data_ptr() % 64 == 0
        for name, x in TENSORS.items():
            assert file.get_tensor(name).data_ptr() % x.element_size() == 0


def test_a_full_disk_leaves_the_old_file(path):
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.session") as raised:
            write_tensors(path, {"x": [torch.zeros(100_000)]}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "words"),
    [(FULL, r"No space left on device: .*a\.session"), (KeyboardInterrupt(), "^$")],
    ids=["full disk", "Ctrl-C"],
)
def test_an_error_midway_leaves_the_old_file(path, monkeypatch, error, words):
    old, written = path.read_bytes(), []

    def write(file, part):
        if written:
            raise error
        written.append(part)
        file.write(b"some")

    monkeypatch.setattr(tensor_file, "_write", write)
    with pytest.raises(type(error), match=words):
        write_tensors(path, PARTS, {})
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


def peak(reset: bool) -> int:
    """The most bytes that this process held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(x.split()[1]) << 10 for x in status.splitlines() if x.startswith("VmHWM"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_writing_takes_no_second_copy(tmp_path):
    x = torch.zeros(1, 16_000, 1_000)
    before = peak(reset=True)
    write_tensors(tmp_path / "file", {"x": [x[:, :9], x[:, 9:]]}, {})
    assert peak(reset=False) - before < x.nbytes / 10


def test_targets(path, tmp_path):
    assert target_of("save", path, True) == path
    assert target_of("save", tmp_path / "new", False) == tmp_path / "new"
    for value, overwrite, words in (
        (path, False, "path must be the name of a new file, got .*; overwrite=True replaces it"),
        (tmp_path, True, "path must be the name of a file, got the directory"),
        ("", False, "path must be the name of a file, got ''"),
        (3, False, "path must be the name of a file, got 3"),
        (path, 1, "overwrite must be True or False, got 1"),
    ):
        with pytest.raises(ValueError, match=words):
            target_of("save", value, overwrite)
