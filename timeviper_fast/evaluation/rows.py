"""The answers of a needle test: a file of JSON lines to which a continued run appends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timeviper_fast.errors import ArgumentError
from timeviper_fast.evaluation.score import Score

__all__ = ["Key", "Row", "RowFile", "keep_settings"]

Key = tuple[str, float, int, int, str]


@dataclass(frozen=True)
class Row:
    """One answer.

    Attributes:
        control: "none", or one of `CONTROLS`.
        keep: share of the vision tokens that the asking stage kept.
        frames, video: length and number of the video.
        task, hops, depth, question, truth: see `Probe`.
        answer: the generated text.
        right: whether the answer is judged right.
        needed: frames that show the answer.
        kept: how many needed frames still have a token after the last stage; None for the controls
            blind, no-video and needle-only.
        seconds: time from the question to the end of the answer.
        video_seconds: time of the computation that the questions of the video share.
        found: the frame with the largest score in the asking stage: when the model saw the answer.
            None if no stage asks, and for the controls blind, no-video and needle-only.
    """

    control: str
    keep: float
    frames: int
    video: int
    task: str
    hops: int
    depth: float
    question: str
    truth: str
    answer: str
    right: bool
    needed: tuple[int, ...]
    kept: int | None
    seconds: float
    video_seconds: float
    found: int | None = None

    @property
    def key(self) -> Key:
        """Identifies the row: no two rows of a file have the same key."""
        return (self.control, self.keep, self.frames, self.video, self.task)

    @property
    def answered(self) -> Score:
        """This answer as a score."""
        return Score(int(self.right), 1)

    @property
    def retained(self) -> Score:
        """The share of its needed frames that still have a token, as a score."""
        return Score(0, 0) if self.kept is None else Score(self.kept, len(self.needed))

    @property
    def timed(self) -> Score:
        """Whether the frame with the largest score is a needed one, as a score."""
        if self.found is None or not self.needed:
            return Score(0, 0)
        return Score(int(self.found in self.needed), 1)


class RowFile:
    """Rows on disk: each is appended when its answer is known; the next run reads them all.

    Args:
        path: the file; made if it does not exist. A last line without a newline, left by a run that
            was killed, is removed.

    Raises:
        ArgumentError: a line is not a row.
    """

    def __init__(self, path: Path) -> None:
        self.rows: list[Row] = []
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            self.rows.append(_row(line, f"{path.name}:{number}"))
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(len(whole))
        self._file.seek(len(whole))
        self.keys = {row.key for row in self.rows}

    def add(self, row: Row) -> None:
        """Write a row."""
        self._file.write(json.dumps(asdict(row)).encode() + b"\n")
        self._file.flush()
        self.rows.append(row)
        self.keys.add(row.key)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def _row(line: bytes, where: str) -> Row:
    try:
        fields = json.loads(line)
        return Row(**{**fields, "needed": tuple(fields["needed"])})
    except (ValueError, TypeError, KeyError) as error:
        remedy = "give another folder, or take the line out"
        raise ArgumentError("needle", "out", "hold rows of a needle run", where, remedy) from error


def expect_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Compare settings that are known before the videos with those in the file, if there is one.

    Raises:
        ArgumentError: the folder holds rows of other settings.
    """
    if not path.exists():
        return
    own, held = json.loads(json.dumps(settings)), json.loads(path.read_text(encoding="utf-8"))
    for name in own:
        if held.get(name) != own[name]:
            rule = f"hold rows of the same {name} ({_short(own[name])})"
            remedy = "give another folder"
            raise ArgumentError("needle", "out", rule, _short(held.get(name)), remedy)


def keep_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of the videos and the model, or compare them with those in the file.

    Raises:
        ArgumentError: the folder holds rows of other settings.
    """
    own = json.loads(json.dumps(settings))
    if not path.exists():
        path.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
        return
    held = json.loads(path.read_text(encoding="utf-8"))
    expect_settings(path, dict.fromkeys(held) | own)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
