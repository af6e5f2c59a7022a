"""All rows that have no record yet, each by one process, and what a folder holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from timeviper_fast.corpus.answer import Options, answered, error_record, settings_of
from timeviper_fast.corpus.attempts import MOST_ATTEMPTS
from timeviper_fast.corpus.records import Records
from timeviper_fast.corpus.rows import CorpusRow
from timeviper_fast.errors import fail
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video import Progress
from tvkernels import use_backend

__all__ = ["Done", "Status", "Worker", "run_corpus", "status"]

# of one row: "busy" is worked on by another process
Done = Literal["answered", "error", "there", "busy"]


@dataclass(frozen=True)
class Worker:
    """Answers rows with one model; several may share a folder.

    Args:
        model: a `TimeViper` with a tokenizer.
        records: the folder.
        options: how rows are read and asked; all workers of a folder have the same.
        retry_errors: whether a record with an error is made anew.
        backend: of the ops; None chooses by device.

    Raises:
        ArgumentError: the folder holds records of other settings or another model.
    """

    model: TimeViper
    records: Records
    options: Options
    retry_errors: bool = False
    backend: Literal["reference", "triton"] | None = None

    def __post_init__(self) -> None:
        if self.model.tokenizer is None:
            fail("corpus", "model", "have a tokenizer", None)
        self.records.keep_settings(settings_of(self.model, self.options))

    def __call__(self, row: CorpusRow) -> Done:
        """Answer a row, unless it has a record; say what was done."""
        if self._is_there(row):
            return "there"
        with self.records.attempts.claim(row.id) as attempt:
            if attempt is None:
                return "busy"
            # another process may have been quicker
            if self._is_there(row):
                return "there"
            if attempt >= MOST_ATTEMPTS:
                often = f"the process ended {attempt - 1} times while it read this video"
                record = error_record(row, often)
            else:
                with use_backend(self.backend) if self.backend else nullcontext():
                    record = answered(self.model, row, self.options)
            self.records.put(row, record)
        return "error" if _has_error(record) else "answered"

    def _is_there(self, row: CorpusRow) -> bool:
        record = self.records.get(row)
        return record is not None and not (self.retry_errors and _has_error(record))


def run_corpus(
    worker: Worker, rows: Sequence[CorpusRow], progress: Progress | None = None
) -> Counter[Done]:
    """Answer all rows that have no record; how many of each kind there were.

    Start it again after it was stopped, or at the same time in several processes: every row gets
    one record. `progress` is called with ("videos", done, all).
    """
    counts: Counter[Done] = Counter()
    for number, row in enumerate(rows, 1):
        counts[worker(row)] += 1
        if progress is not None:
            progress("videos", number, len(rows))
    return counts


@dataclass(frozen=True)
class Status:
    """What a folder holds.

    Attributes:
        records: of all rows so far.
        errors: of these, records with an error in them.
        questions, unanswered: of all records; `unanswered` have an error.
        begun: rows that are worked on, and those whose process ended meanwhile.
    """

    records: int
    errors: int
    questions: int
    unanswered: int
    begun: int


def status(records: Records) -> Status:
    """What a folder holds; ArgumentError for one that is none of a corpus."""
    records.settings()
    count = errors = questions = unanswered = 0
    for record in records:
        count += 1
        errors += _has_error(record)
        questions += len(record["answers"])
        unanswered += sum(bool(answer["error"]) for answer in record["answers"])
    return Status(count, errors, questions, unanswered, records.attempts.open())


def _has_error(record: dict[str, object]) -> bool:
    answers = record["answers"]
    assert isinstance(answers, list)
    return bool(record["error"]) or any(answer["error"] for answer in answers)
