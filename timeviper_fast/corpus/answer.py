"""From a row to its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from timeviper_fast.corpus.rows import Asked, CorpusRow
from timeviper_fast.errors import fail
from timeviper_fast.inference.answer import Answer
from timeviper_fast.inference.request import Opening, Question
from timeviper_fast.inference.room import FAULTS
from timeviper_fast.inference.session import Session
from timeviper_fast.model.fingerprint import fingerprint, numbers_of
from timeviper_fast.timeviper import TimeViper

__all__ = ["Options", "answered", "error_record", "settings_of"]


@dataclass(frozen=True)
class Options:
    """How all rows are read and asked.

    Attributes:
        opening: of each video; `start` and `end` are the row's.
        max_new_tokens: longest answer.
    """

    opening: Opening
    max_new_tokens: int = Question.max_new_tokens

    def __post_init__(self) -> None:
        Question("a question", self.max_new_tokens)
        for name in ("start", "end"):
            if getattr(self.opening, name) is not None:
                value = getattr(self.opening, name)
                fail("corpus", name, "be left out: each row has its own", value)


def settings_of(model: TimeViper, options: Options) -> dict[str, Any]:
    """What two runs must share for the same records: weights, dtype and options."""
    opening = {name: _plain(value) for name, value in vars(options.opening).items()}
    for name in ("start", "end", "tiles"):
        del opening[name]
    opening["policy"] = opening["policy"] or model.config.policy
    if options.opening.stages is None:
        opening["stages"] = [asdict(stage) for stage in model.backbone.stages]
    return {
        "model": fingerprint(numbers_of(model))[:16],
        "dtype": str(model.dtype).removeprefix("torch."),
        **opening,
        "max_new_tokens": options.max_new_tokens,
    }


def answered(model: TimeViper, row: CorpusRow, options: Options) -> dict[str, Any]:
    """The record of a row: a video that cannot be read, or a question, may be an error in it."""
    try:
        opening = replace(options.opening, start=row.start, end=row.end)
        session = model.open(row.path, **vars(opening))
    except FAULTS as error:
        return error_record(row, _told(error, row))
    answers = _answers(session, row, options.max_new_tokens)
    record = _record(row, "", answers)
    record["frames"] = len(session.footage.seconds)
    record["duration"] = session.footage.duration
    return record


def error_record(row: CorpusRow, error: str) -> dict[str, Any]:
    """The record of a video that has no answers."""
    return _record(row, error, [_said(asked, None, error) for asked in row.questions])


def _answers(session: Session, row: CorpusRow, max_new_tokens: int) -> list[dict[str, Any]]:
    """All questions together; if one does not fit, each alone, so that the others are answered."""
    prefixes = {asked.answer_prefix for asked in row.questions}
    found: dict[str, dict[str, Any]] = {}
    for prefix in sorted(prefixes):
        some = [asked for asked in row.questions if asked.answer_prefix == prefix]
        try:
            answers = _ask(session, some, prefix, max_new_tokens)
            found |= {one.id: _said(one, answer) for one, answer in zip(some, answers)}
        except FAULTS:
            for one in some:
                try:
                    [answer] = _ask(session, [one], prefix, max_new_tokens)
                    found[one.id] = _said(one, answer)
                except FAULTS as error:
                    found[one.id] = _said(one, None, _told(error, row))
    return [found[asked.id] for asked in row.questions]


def _ask(
    session: Session, asked: Sequence[Asked], prefix: str, max_new_tokens: int
) -> list[Answer]:
    prompts = [one.prompt for one in asked]
    return session.ask(prompts, answer_prefix=prefix, max_new_tokens=max_new_tokens)


def _said(asked: Asked, answer: Answer | None, error: str = "") -> dict[str, Any]:
    return {
        "id": asked.id,
        "question": asked.question,
        "answer": None if answer is None else answer.text,
        "finish": None if answer is None else answer.finish,
        "error": error,
    }


def _record(row: CorpusRow, error: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": row.id,
        "row": row.digest,
        "video": row.video,
        "start": row.start,
        "end": row.end,
        "frames": None,
        "duration": None,
        "error": error,
        "answers": answers,
    }


def _told(error: BaseException, row: CorpusRow) -> str:
    """The error without the folder that the video lies in."""
    if isinstance(error, OSError) and error.strerror:
        return f"{row.video}: {error.strerror}"
    return str(error).replace(str(row.path), row.video) or type(error).__name__


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
