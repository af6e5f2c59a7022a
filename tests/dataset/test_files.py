"""Files are written atomically, and a media file's key changes with the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from timeviper_fast.dataset.files import media_key, write_whole


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "new" / "a", b"one")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "new" / "a", b"two")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "new").iterdir()] == [
        ("a", b"one")
    ]


def test_a_key_is_of_path_size_and_time(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(b"x")
        os.utime(path, (5, 5))
    keys = [media_key(path) for path in (*paths, tmp_path)]
    assert len(set(keys)) == 3
    assert media_key(paths[0]) == keys[0]
    os.utime(paths[0], (6, 6))
    assert media_key(paths[0]) != keys[0]
    assert media_key(tmp_path) != keys[2]
    with pytest.raises(FileNotFoundError):
        media_key(tmp_path / "c")
