"""A check lists every fault by file and line, opens media once, and never crashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dataset.common import film, jsonl, talk
from timeviper_fast.dataset import media
from timeviper_fast.dataset.check import check_rows
from timeviper_fast.dataset.media import MediaIndex
from timeviper_fast.dataset.rows import Rows

TALK = {"conversations": talk("What?", "That.")}


def test_every_fault_with_its_line(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 8)  # 4 seconds
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 64)
    rows = [
        {"video": "a.mp4", **TALK},
        {"video": "none.mp4", **TALK},
        {"video": "broken.mp4", **TALK},
        {"video": "none.mp4", "conversations": talk("What?")},
        {"video": "a.mp4", "start": 9, **TALK},
        {"video": "a.mp4", "start": 1, "end": 3, "span": [4, 6], **TALK},
        {"video": "a.mp4", "span": [4, 6], **TALK},
        {"conversations": talk("Only text?", "Yes.")},
        {"video": "a.mp4", "start": 1.1, "end": 1.2, **TALK},
        {"video": "none.mp4", **TALK},
    ]
    path = jsonl(tmp_path / "a.jsonl", rows)
    told = [
        str(fault).removeprefix(f"{path}:").replace(f"{tmp_path}/", "")
        for fault in check_rows(Rows(path))
    ]
    assert told[0] == "2: none.mp4: no such file or directory"
    assert told[1].startswith("3: broken.mp4: it cannot be opened as a video (")
    assert told[2:] == [
        "4: there is no answer to the last question",
        "5: a.mp4: start must lie within the video (00:00 to 00:04), got 00:09",
        "6: span must touch the part from start to end, got [4.0, 6.0]",
        "7: a.mp4: span must begin within the video (4.00 s), got [4.0, 6.0]",
        "9: a.mp4: start must have a frame between it and the end (nearest frames: 00:01, 00:01.50), got 00:01.10 to 00:01.20",
        "10: none.mp4: no such file or directory",
    ]


def test_the_kind_is_checked_and_faults_of_the_file_come_first(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"video": "a.mp4", "conversations": []},\n 7, {"')
    faults = check_rows(Rows(path), "text")
    assert [fault.row for fault in faults] == [None, 0, 1]
    assert [str(fault).split(":")[1] for fault in faults] == ["2", "1", "2"]
    rows = Rows(jsonl(tmp_path / "b.jsonl", [TALK]))
    assert [fault.reason for fault in check_rows(rows, "grounding")] == [
        "a row of kind 'grounding' must have a video or an image",
        "a row of kind 'grounding' must have a span",
    ]


def test_a_second_check_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "a.mp4", 3)
    rows = Rows(jsonl(tmp_path / "a.jsonl", [{"video": "a.mp4", **TALK}] * 3))
    told: list[tuple[int, int]] = []
    kept = MediaIndex(tmp_path / "kept")
    assert check_rows(rows, index=kept, progress=lambda *done: told.append(done)) == []
    assert told == [(1, 1)]
    monkeypatch.setattr(media, "open_video", None)
    assert check_rows(rows, index=MediaIndex(tmp_path / "kept")) == []
