"""The answers of a needle test: a file of JSON lines that a continued run goes on with."""

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
        control: "none", or what was changed.
        keep: share of the vision tokens that the asking stage kept.
        frames, video: length and number of the video.
        task, hops, depth, question, truth: of the probe.
        answer: what the model said.
        right: whether that is the truth.
        needed: frames that show the answer.
        kept: those of them with a token left behind the stages; None where no stage dropped any.
        seconds: from the question to the end of the answer.
        video_seconds: spent on what the questions of the video share.
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

    @property
    def key(self) -> Key:
        """What no two rows of a file share."""
        return (self.control, self.keep, self.frames, self.video, self.task)

    @property
    def answered(self) -> Score:
        """This answer as a score."""
        return Score(int(self.right), 1)

    @property
    def retained(self) -> Score:
        """Its needed frames as a score: how many have a token left."""
        return Score(0, 0) if self.kept is None else Score(self.kept, len(self.needed))


class RowFile:
    """Rows on disk: each is written as it comes, and read again by the next run.

    Args:
        path: made if it does not exist. A last line without an end, of a run that was killed, is
            cut off.

    Raises:
        ArgumentError: a line that is no row.
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


def keep_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write what decides the videos and the model, or compare it with what is written there.

    Raises:
        ArgumentError: the folder holds rows of other settings.
    """
    own = json.loads(json.dumps(settings))
    if not path.exists():
        path.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
        return
    held = json.loads(path.read_text(encoding="utf-8"))
    for name in {**held, **own}:
        if held.get(name) != own.get(name):
            rule = f"hold rows of the same {name} ({_short(own.get(name))})"
            remedy = "give another folder"
            raise ArgumentError("needle", "out", rule, _short(held.get(name)), remedy)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
