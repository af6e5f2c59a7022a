"""Rows of a questions file: a video and its questions, refused by file and row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from timeviper_fast.errors import FROM_0, TEXT, ArgumentError, DataError, Kind
from timeviper_fast.evaluation.sets.files import TEXTS, Record, records
from timeviper_fast.evaluation.sets.row import with_letters

__all__ = ["Asked", "CorpusRow", "read_rows", "shard_of"]

_QUESTIONS = Kind("be a list of one question or more", lambda v: isinstance(v, list) and bool(v))
_FORMATS = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        id: its name among the row's questions.
        question: its words.
        options: texts of a multiple-choice question, without letters.
        answer_prefix: words that the answer is made to begin with.
    """

    id: str
    question: str
    options: tuple[str, ...] = ()
    answer_prefix: str = ""

    @property
    def prompt(self) -> str:
        """The question, and its options by letter, a line each."""
        return "\n".join([self.question, *with_letters(self.options)])


@dataclass(frozen=True)
class CorpusRow:
    """A video and its questions, which are asked in one session.

    Attributes:
        id: no two rows have the same.
        video: as it stands in the file.
        path: of the video; one that is not absolute is taken from the folder of the file.
        start, end: the part of the video to look at, in seconds; None for all.
        questions: one or more.
    """

    id: str
    video: str
    path: Path
    start: float | None
    end: float | None
    questions: tuple[Asked, ...]

    @property
    def digest(self) -> str:
        """Tells a row from another one of the same id; the folder does not count."""
        told = {**asdict(self), "path": None}
        return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def read_rows(path: str | Path) -> list[CorpusRow]:
    """The rows of a .jsonl, .json or .parquet file, in its order.

    A line is a video with "questions", each a text or an object with "question" and, if wanted,
    "id", "options" and "answer_prefix"; "start" and "end" choose a part of it, and "id" is the
    row's name (default: the video). A line with one "question" is joined with the other such lines
    about the same part of the video; its "id" is the question's.

    Raises:
        ArgumentError: the file does not exist, has another format or no row.
        DataError: a row breaks a rule; it names file and row.
    """
    path = Path(path)
    if path.suffix not in _FORMATS or not path.is_file():
        raise ArgumentError("corpus", "questions", f"be a {', '.join(_FORMATS)} file", str(path))
    rows: dict[str, CorpusRow] = {}
    where: dict[str, str] = {}
    single: dict[tuple[Any, ...], list[tuple[Record, Asked]]] = {}
    for record in records(path):
        if "question" in record.fields:
            single.setdefault(_part(record), []).append((record, _asked(record, 0)))
            continue
        row = _row(record, path.parent, record.maybe("id", TEXT), _questions(record))
        _add(rows, where, row, record.where)
    for lines in single.values():
        first = lines[0][0]
        numbered = enumerate(lines, 1)
        asked = [
            Asked(one.id or str(i), one.question, one.options, one.answer_prefix)
            for i, (_, one) in numbered
        ]
        _expect_unique(asked, first.where)
        _add(rows, where, _row(first, path.parent, None, tuple(asked)), first.where)
    if not rows:
        raise ArgumentError("corpus", "questions", "hold a row or more", str(path))
    return list(rows.values())


def _add(rows: dict[str, CorpusRow], where: dict[str, str], row: CorpusRow, at: str) -> None:
    if row.id in rows:
        raise DataError(at, f"its id must be new, but {row.id} stands at {where[row.id]} too")
    rows[row.id], where[row.id] = row, at


def _part(record: Record) -> tuple[Any, ...]:
    return record.get("video"), record.maybe("start", FROM_0), record.maybe("end", FROM_0)


def _row(record: Record, folder: Path, name: str | None, questions: tuple[Asked, ...]) -> CorpusRow:
    video, start, end = _part(record)
    if start is not None and end is not None and not start < end:
        record.refuse("end", f"be above start, {start}")
    part = "" if start is None and end is None else f"#{start or 0:g}-{'' if end is None else end}"
    return CorpusRow(name or f"{video}{part}", video, folder / video, start, end, questions)


def _questions(record: Record) -> tuple[Asked, ...]:
    asked = []
    for number, one in enumerate(record.get("questions", _QUESTIONS), 1):
        fields = {"question": one} if isinstance(one, str) else one
        asked.append(_asked(Record(f"{record.where}, question {number}", fields), number))
    _expect_unique(asked, record.where)
    return tuple(asked)


def _asked(one: Record, number: int) -> Asked:
    """A question; `number` is its name if it has none, 0 leaves it empty."""
    name = one.maybe("id", TEXT) or (str(number) if number else "")
    options = one.maybe("options", TEXTS) or ()
    return Asked(name, one.get("question"), tuple(options), one.maybe("answer_prefix", TEXT) or "")


def _expect_unique(asked: list[Asked], where: str) -> None:
    names = [one.id for one in asked]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(where, f"the ids of a video's questions must differ, but {twice} is twice")


def shard_of(rows: list[CorpusRow], index: int, count: int) -> Iterator[CorpusRow]:
    """The rows of one shard of several, by a hash of their ids: rows that come later move none."""
    for row in rows:
        if int(sha256(row.id.encode()).hexdigest(), 16) % count == index:
            yield row
