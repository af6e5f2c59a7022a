"""The answers of a test: a file of JSON lines to which a continued run appends."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from timeviper_fast.atomic import lock, naming, whole_file
from timeviper_fast.errors import ArgumentError
from timeviper_fast.evaluation.evidence_score import Pointing, evidence_of_line
from timeviper_fast.evaluation.score import Score

__all__ = [
    "Key",
    "LineFile",
    "Row",
    "RowFile",
    "expect_settings",
    "keep_settings",
    "write_json",
]

_Line = TypeVar("_Line", bound=Any)
_File = TypeVar("_File", bound="LineFile[Any]")

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
        evidence: with NeedlePlan.evidence, whether the evidence lies on the needed frames; None
            where `found` is.
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
    evidence: dict[str, Pointing] | None = None

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


class LineFile(ABC, Generic[_Line]):
    """Lines on disk: each is appended when its answer is known; the next run reads them all.

    A line is a dataclass with a `key` that no other line has.

    Args:
        path: the file; made if it does not exist. A last line without a newline, left by a run that
            was killed, is removed. The file is locked until it is closed.

    Attributes:
        owner, run: the command that errors name, and its run in words.
        argument: its option that names the folder.
        rows: all lines.
        keys: the keys of all lines.

    Raises:
        ArgumentError: a line is not of this kind, or another run writes the file.
    """

    owner: str
    run: str
    argument: str = "out"

    def __init__(self, path: Path) -> None:
        self.rows: list[_Line] = []
        self._path = path
        self._file = self._locked()
        try:
            data = self._file.read()
            whole = data[: data.rfind(b"\n") + 1]
            for number, line in enumerate(whole.splitlines(), 1):
                self.rows.append(self._parsed(line, f"{path.name}:{number}"))
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(len(whole))
        self._file.seek(len(whole))
        self.keys: set[Hashable] = {row.key for row in self.rows}

    @abstractmethod
    def parse(self, fields: dict[str, Any]) -> _Line:
        """The line of these fields; a ValueError, TypeError or KeyError says that they are none."""

    def add(self, row: _Line) -> None:
        """Write a line."""
        with naming(self._path):
            self._file.write(_line(row))
            self._file.flush()
        self.rows.append(row)
        self.keys.add(row.key)

    def drop(self, gone: Callable[[_Line], bool]) -> None:
        """Take lines out of the file, so that their questions are asked again."""
        self.rows = [row for row in self.rows if not gone(row)]
        self.keys = {row.key for row in self.rows}
        with whole_file(self._path) as partial:
            partial.write_bytes(b"".join(map(_line, self.rows)))
        self.close()
        self._file = self._locked()
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        with naming(self._path):
            self._file.close()

    def __enter__(self: _File) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[_Line]:
        return iter(self.rows)

    def _locked(self) -> IO[bytes]:
        """The file, made if it does not exist, which no other run may write now."""
        self._path.open("ab").close()
        file = self._path.open("r+b")
        # another run may have replaced the file by `drop`
        if lock(file) and self._path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()
        rule, remedy = "be the folder of one run at a time", "give another folder"
        held = f"{self._path}, which a run writes now"
        raise ArgumentError(self.owner, self.argument, rule, held, remedy)

    def _parsed(self, line: bytes, where: str) -> _Line:
        try:
            return self.parse(dict(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            remedy = "give another folder, or take the line out"
            rule = f"hold rows of {self.run}"
            raise ArgumentError(self.owner, self.argument, rule, where, remedy) from error


class RowFile(LineFile[Row]):
    """The rows of a needle test on disk."""

    owner, run = "needle", "a needle run"

    def parse(self, fields: dict[str, Any]) -> Row:
        evidence = evidence_of_line(fields.get("evidence"))
        return Row(**{**fields, "needed": tuple(fields["needed"]), "evidence": evidence})


def _line(row: Any) -> bytes:
    return json.dumps(asdict(row)).encode() + b"\n"


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def expect_settings(
    path: Path, settings: Mapping[str, Any], *, owner: str = "needle", argument: str = "out"
) -> None:
    """Compare settings that are known before the videos with those in the file, if there is one.

    Raises:
        ArgumentError: the folder holds rows of other settings.
    """
    if not path.exists():
        return
    own, held = json.loads(json.dumps(settings)), _held(path, owner, argument)
    for name in own:
        if held.get(name) != own[name]:
            rule = f"hold rows of the same {name} ({_short(own[name])})"
            remedy = "give another folder"
            raise ArgumentError(owner, argument, rule, _short(held.get(name)), remedy)


def keep_settings(
    path: Path, settings: Mapping[str, Any], *, owner: str = "needle", argument: str = "out"
) -> None:
    """Write the settings of the videos and the model, or compare them with those in the file.

    Raises:
        ArgumentError: the folder holds rows of other settings.
    """
    own = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, own)
        return
    expect_settings(
        path, dict.fromkeys(_held(path, owner, argument)) | own, owner=owner, argument=argument
    )


def _held(path: Path, owner: str, argument: str) -> dict[str, Any]:
    """The settings in a file."""
    try:
        held = json.loads(path.read_bytes())
    except ValueError:
        held = None
    if not isinstance(held, dict):
        remedy = "give another folder, or remove the file if the rows beside it are of this run"
        rule = "hold the settings of a run"
        raise ArgumentError(owner, argument, rule, f"none in {path}", remedy)
    return held


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
