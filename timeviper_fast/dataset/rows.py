"""Annotation files: LLaVA-style JSON or JSONL, one conversation per row, read on request.

Only each row's offset in the file is kept, so that millions of rows fit into memory.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from timeviper_fast.errors import ArgumentError, DataError, is_number
from timeviper_fast.text.messages import Message
from timeviper_fast.video.images import is_image
from timeviper_fast.video.times import parse_span

__all__ = ["Fault", "Row", "Rows", "parse_row"]

# role names of LLaVA's form ("from") and of chat templates ("role")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ORDER = ("user", "assistant")
_MARKS = re.compile("(?:<image>)+|(?:<video>)+")
_BLANK = re.compile(r"[ \t\r\n]*")


class Fault(NamedTuple):
    """The reason why a row cannot be used. `where` is "file:line"; `row` is None for the file."""

    where: str
    reason: str
    row: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Row:
    """One row of an annotation file.

    Attributes:
        messages: {"role", "content"} in turns; empty for a row that has a caption instead.
        media: the video or image, or None for text only.
        is_image: whether `media` is a single image.
        placeholder: the mark in the messages that the vision tokens replace; None puts them first.
        start, end: the part of the video to show, in seconds of the video; None for all.
        span: the answer of a grounding question, in seconds of the video.
        caption: a description, or for grounding the event to find; the row has no question.
        id: the row's name in the file.
    """

    messages: tuple[Message, ...]
    media: Path | None = None
    is_image: bool = False
    placeholder: str | None = None
    start: float | None = None
    end: float | None = None
    span: tuple[float, float] | None = None
    caption: str = ""
    id: str = ""


class Rows:
    """The rows of a file; `rows[i]` reads and parses row i.

    A JSON file holds one array of objects, a JSONL file one object per line (blank lines are
    ignored). `docs/training.md` lists the fields.

    Args:
        path: the annotation file.
        media: the folder that relative paths of videos and images start from; the file's own by
            default.

    Attributes:
        faults: faults of the file itself, such as an array that is cut off.

    Raises:
        FileNotFoundError: the file does not exist.
    """

    def __init__(
        self, path: str | os.PathLike[str], media: str | os.PathLike[str] | None = None
    ) -> None:
        self.path = Path(path).expanduser()
        self.media = self.path.parent if media is None else Path(media).expanduser()
        self.faults: list[Fault] = []
        self._starts, self._sizes, self._lines = array("q"), array("q"), array("q")
        self._version = self._stat()
        for start, size, line in self._array() if self._is_array() else self._each_line():
            self._starts.append(start)
            self._sizes.append(size)
            self._lines.append(line)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, row: int) -> str:
        """The row as "file:line"."""
        return f"{self.path}:{self._lines[row]}"

    def __getitem__(self, row: int) -> Row:
        """Parse a row.

        Raises:
            DataError: the row breaks a rule; the message is its first fault.
        """
        parsed, reasons = self.parse(row)
        if parsed is None:
            raise DataError(self.where(row), reasons[0])
        return parsed

    def parse(self, row: int) -> tuple[Row | None, list[str]]:
        """The row, or None and all of its faults."""
        if self._stat() != self._version:
            raise DataError(str(self.path), "the file has changed since it was opened")
        with self.path.open("rb") as file:
            file.seek(self._starts[row])
            text = file.read(self._sizes[row])
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return None, [f"it is no JSON ({error})"]
        return parse_row(value, self.media)

    def _stat(self) -> tuple[int, int]:
        stat = self.path.stat()
        return stat.st_size, stat.st_mtime_ns

    def _is_array(self) -> bool:
        """Whether the file is one JSON array, by its first character."""
        with self.path.open("rb") as file:
            while chunk := file.read(1 << 12):
                first = chunk.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
                if first:
                    return first == b"["
        return False

    def _each_line(self) -> Iterator[tuple[int, int, int]]:
        start = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                # some editors write a byte order mark in front of the text
                skipped = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
                if line[skipped:].strip():
                    yield start + skipped, len(line) - skipped, number
                start += len(line)

    def _array(self) -> Iterator[tuple[int, int, int]]:
        """Offset and length in bytes, and line, of each item of the file's array."""
        data = self.path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self._refuse(line, "the text is not UTF-8; no row of the file is read")
            return
        decoder, line, done, offset = json.JSONDecoder(), 1, 0, 0
        at, closed = text.index("[") + 1, False
        while not closed:
            at = _after_blanks(text, at)
            if text[at : at + 1] == "]" and done == 0:
                closed, at = True, at + 1
                break
            try:
                _, stop = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                line += text.count("\n", done, at)
                self._refuse(line, f"the array breaks off here ({error}); the rest is not read")
                return
            line, offset = line + text.count("\n", done, at), offset + _bytes(text, done, at)
            size = _bytes(text, at, stop)
            yield offset, size, line
            line, offset, done = line + text.count("\n", at, stop), offset + size, stop
            at = _after_blanks(text, stop)
            if text[at : at + 1] not in ("]", ","):
                self._refuse(line, "a comma or the array's end is missing after this row")
                return
            closed, at = text[at] == "]", at + 1
        if text[at:].strip():
            self._refuse(line, "there is text after the array")

    def _refuse(self, line: int, reason: str) -> None:
        self.faults.append(Fault(f"{self.path}:{line}", reason))


def _after_blanks(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _bytes(text: str, start: int, stop: int) -> int:
    """UTF-8 bytes of a part of the text."""
    return len(text[start:stop].encode())


def parse_row(value: Any, media: Path) -> tuple[Row | None, list[str]]:
    """A row of an annotation file, or None and all of its faults.

    Args:
        value: the row as parsed JSON.
        media: the folder that relative paths start from.
    """
    if not isinstance(value, dict):
        return None, [f"a row must be an object, got {_told(value)}"]
    faults: list[str] = []
    path, is_image = _media_of(value, media, faults)
    caption = value.get("caption", "")
    if not isinstance(caption, str):
        faults.append(f"caption must be text, got {_told(caption)}")
    messages = _messages(value, faults)
    messages, placeholder = _place_of_vision(messages, path is not None, faults)
    _check_texts(messages, faults)
    start, end = _part(value, faults)
    span = _span(value, faults)
    if span and ((end is not None and span[0] > end) or (start is not None and span[1] < start)):
        faults.append(f"span must touch the part from start to end, got {list(span)}")
    if (span or start is not None or end is not None) and (path is None or is_image):
        faults.append("start, end and span are for videos, and there is none")
    if faults:
        return None, faults
    name = str(value.get("id", ""))
    row = Row(tuple(messages), path, is_image, placeholder, start, end, span, caption, name)
    return row, []


def _media_of(value: dict[str, Any], folder: Path, faults: list[str]) -> tuple[Path | None, bool]:
    """The video or image of a row. As in upstream TimeViper, `image` may also name a video."""
    given = [(key, value[key]) for key in ("video", "image") if value.get(key) is not None]
    if not given:
        return None, False
    if len(given) > 1:
        faults.append("a row must have a video or an image, not both")
        return None, False
    key, name = given[0]
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        faults.append(f"{key} must be the path of one file, got {_told(name)}")
        return Path(), False
    path = folder / name
    return path, key == "image" and is_image(path)


def _messages(value: dict[str, Any], faults: list[str]) -> list[dict[str, str]]:
    """The turns of `conversations` or `messages` that have a role and a text."""
    for key, role_key, text_key in (
        ("conversations", "from", "value"),
        ("messages", "role", "content"),
    ):
        turns = value.get(key)
        if turns is None:
            continue
        if not isinstance(turns, list) or not turns:
            faults.append(f"{key} must be a list of turns, got {_told(turns)}")
            return []
        found = []
        for i, turn in enumerate(turns):
            role = turn.get(role_key) if isinstance(turn, dict) else None
            text = turn.get(text_key) if isinstance(turn, dict) else None
            known = _ROLES.get(role) if isinstance(role, str) else None
            if known != _ORDER[i % 2]:
                wanted = ("human or user", "gpt or assistant")[i % 2]
                faults.append(f"turn {i} must be by {wanted}, got {_told(role)}")
            if not isinstance(text, str):
                faults.append(f"turn {i} must have a text {text_key!r}, got {_told(text)}")
            found.append({"role": _ORDER[i % 2], "content": text if isinstance(text, str) else "-"})
        if len(turns) % 2:
            faults.append("there is no answer to the last question")
        return found
    if not value.get("caption"):
        faults.append("there are no conversations, messages or caption")
    return []


def _place_of_vision(
    messages: list[dict[str, str]], has_vision: bool, faults: list[str]
) -> tuple[list[dict[str, str]], str | None]:
    """Find the mark of the vision. If it precedes the first question, remove it and the blanks
    after it, so that training and inference read the same prompt."""
    found = [
        (i, match)
        for i, message in enumerate(messages)
        if "<" in message["content"]
        for match in _MARKS.finditer(message["content"])
    ]
    if not found:
        return messages, None
    turn, match = found[0]
    mark = match[0][: len("<image>")]
    if not has_vision:
        faults.append(f"turn {turn} has the mark {mark}, and there is no video or image")
    if len(found) > 1:
        faults.append(f"the vision must have one place, got {len(found)}")
    for i, match in found:
        if i % 2:
            faults.append(f"turn {i} is an answer, which must not hold the mark {match[0][:7]}")
    text = messages[turn]["content"]
    if turn == 0 and not text[: match.start()].strip() and len(found) == 1:
        messages[0]["content"] = text[match.end() :].lstrip()
        return messages, None
    return messages, mark


def _check_texts(messages: list[dict[str, str]], faults: list[str]) -> None:
    for i, message in enumerate(messages):
        text = message["content"]
        text = _MARKS.sub("", text) if "<" in text else text
        if not text.strip():
            faults.append(f"turn {i} is a blank {'answer' if i % 2 else 'question'}")
        try:
            text.encode()
        except UnicodeEncodeError:
            # JSON escapes can encode a lone surrogate
            faults.append(f"turn {i} is not valid Unicode")


def _part(value: dict[str, Any], faults: list[str]) -> tuple[float | None, float | None]:
    """The part to show: `start` in VideoChat-Flash's files, `video_start` in TimeViper's."""
    first, last = (
        value.get(name) if value.get(name) is not None else value.get(f"video_{name}")
        for name in ("start", "end")
    )
    try:
        return parse_span(first, last)
    except ArgumentError as error:
        faults.append(str(error))
        return None, None


def _span(value: dict[str, Any], faults: list[str]) -> tuple[float, float] | None:
    span = value.get("span")
    if span is None:
        return None
    if isinstance(span, list) and len(span) == 2 and all(map(is_number, span)):
        first, last = map(float, span)
        if 0 <= first <= last:
            return first, last
    faults.append(f"span must be [first, last] in seconds, 0 <= first <= last, got {_told(span)}")
    return None


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
