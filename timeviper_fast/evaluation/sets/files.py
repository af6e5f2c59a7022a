"""Annotation files of question sets, read row by row; a wrong row is refused by file and row."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from timeviper_fast.errors import TEXT, ArgumentError, DataError, Kind, fail

__all__ = ["LIST", "TEXTS", "Record", "find", "first", "read_json", "read_lines", "records"]

TEXTS = Kind(
    "be a list of 2 to 26 texts that are not empty",
    lambda v: isinstance(v, list) and 2 <= len(v) <= 26 and all(map(TEXT.holds, v)),
)
LIST = Kind("be a list", lambda v: isinstance(v, list))


@dataclass(frozen=True)
class Record:
    """The fields of one row.

    Args:
        where: the row as "file:line" or "file:row".
        fields: an object.

    Raises:
        DataError: `fields` is no object.
    """

    where: str
    fields: dict[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.fields, dict):
            raise DataError(self.where, f"the row must be an object, not {_short(self.fields)}")

    def get(self, name: str, kind: Kind = TEXT) -> Any:
        """A field; raises a DataError unless it is of this kind."""
        if name not in self.fields:
            raise DataError(self.where, f"{name} must {kind.rule}, but is missing")
        if not kind.holds(self.fields[name]):
            self.refuse(name, kind.rule)
        return self.fields[name]

    def maybe(self, name: str, kind: Kind) -> Any:
        """A field that may be missing or null: None then."""
        return None if self.fields.get(name) is None else self.get(name, kind)

    def refuse(self, name: str, rule: str) -> NoReturn:
        """Raise the DataError about a field."""
        raise DataError(self.where, f"{name} must {rule}, not {_short(self.fields.get(name))}")

    def letter(self, name: str, options: Sequence[str]) -> str:
        """The letter of the right option."""
        letters = string.ascii_uppercase[: len(options)]
        value = self.get(name)
        if value not in tuple(letters):
            self.refuse(name, f"be a letter from A to {letters[-1]}")
        return str(value)

    def index(self, name: str, options: Sequence[str]) -> str:
        """The letter of the option with this number, from 0 on."""
        rule = f"be an integer from 0 to {len(options) - 1}"
        within = range(len(options))
        number = self.get(name, Kind(rule, lambda v: type(v) is int and v in within))
        return string.ascii_uppercase[number]

    def text_of(self, name: str, options: Sequence[str]) -> str:
        """The letter of the option with this text."""
        if list(options).count(self.get(name)) != 1:
            self.refuse(name, "equal exactly one of the candidates")
        return string.ascii_uppercase[list(options).index(self.fields[name])]

    def lettered(self, name: str, lines: Sequence[str]) -> tuple[str, ...]:
        """Options that carry their letters already: "A. red" or "(A) red"."""
        for letter, line in zip(string.ascii_uppercase, lines):
            if not re.match(rf"(?:{letter}\.|\({letter}\)) +\S", line):
                self.refuse(name, f"have the option {letter} as '{letter}. text'")
        if not 2 <= len(lines) <= 26:
            self.refuse(name, "have 2 to 26 options")
        return tuple(lines)


def find(folder: Path, *patterns: str) -> list[Path]:
    """The files of the first pattern that has any, sorted.

    Raises:
        ArgumentError: there are none.
    """
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found
    near = [*sorted(path for path in folder.iterdir() if path.is_dir()), folder.parent]
    # a pattern with ** has been searched for below the folder already
    names = [pattern for pattern in patterns if "**" not in pattern]
    held = [place for place in near if any(any(place.glob(name)) for name in names)]
    remedy = f"{held[0]} does" if held else ""
    fail("eval", "folder", f"hold {' or '.join(patterns)}", str(folder), remedy)


def first(folder: Path, *names: str) -> Path:
    """The first of these that exists; the first of all if none does."""
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file.

    Raises:
        DataError: a line is not UTF-8; it names file and line.
    """
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}", f"the line must be UTF-8 ({error})") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return _parsed(path.read_bytes(), str(path))


def records(path: Path) -> Iterator[Record]:
    """The rows of a .json file (one array), of a .jsonl or of a .parquet file.

    Raises:
        DataError: a row is no object, or the file is not of its format.
        ArgumentError: a parquet file, and pyarrow is not installed.
    """
    if path.suffix == ".parquet":
        values = _parquet(path)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if line.strip():
                yield Record(f"{path}:{number}", _parsed(line, f"{path}:{number}"))
        return
    else:
        values = read_json(path)
        if not isinstance(values, list):
            raise DataError(str(path), f"the file must hold one array, not {_short(values)}")
    for number, value in enumerate(values, 1):
        yield Record(f"{path}:row {number}", value)


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(where, f"it is no JSON ({error})") from error


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        remedy = "install timeviper-fast[parquet], or convert the file to .jsonl beside it"
        raise ArgumentError(
            "eval", "pyarrow", "be installed", f"none for {path}", remedy
        ) from error
    try:
        return list(parquet.read_table(path).to_pylist())
    except (ArrowException, OSError) as error:
        raise DataError(str(path), f"it is no parquet file ({error})") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
