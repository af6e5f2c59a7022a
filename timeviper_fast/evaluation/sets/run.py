"""Ask all questions of a set: one session for each video, one line for each answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from timeviper_fast.errors import expect_folder, fail
from timeviper_fast.evaluation.needle import weights_digest
from timeviper_fast.evaluation.rows import LineFile, keep_settings
from timeviper_fast.evaluation.sets.prompts import asked, expect_style
from timeviper_fast.evaluation.sets.report import report
from timeviper_fast.evaluation.sets.row import SetRow, Span
from timeviper_fast.inference.request import Request
from timeviper_fast.inference.session import Session
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video import Progress, open_video

__all__ = ["Said", "SaidFile", "run_eval"]


@dataclass(frozen=True)
class Said:
    """One answer.

    Attributes:
        id: of the row.
        video: path of the video.
        truth: the right letter or span.
        answer: the generated text without the forced prefix; "" after an error.
        error: why there is no answer; "" if there is one.
        seconds: time from the question to the end of the answer.
        video_seconds: time to read the video, which its questions share.
    """

    id: str
    video: str
    truth: str | Span
    answer: str
    error: str
    seconds: float
    video_seconds: float

    @property
    def key(self) -> str:
        """Identifies the line."""
        return self.id


class SaidFile(LineFile[Said]):
    """The answers of a run on disk."""

    owner, run = "eval", "an eval run"

    def parse(self, fields: dict[str, Any]) -> Said:
        truth = fields["truth"]
        return Said(**{**fields, "truth": truth if isinstance(truth, str) else tuple(truth)})


def run_eval(
    model: TimeViper,
    rows: Sequence[SetRow],
    folder: str | Path,
    *,
    policy: str | None = None,
    style: str = "paper",
    max_new_tokens: int = 128,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask all rows that have no answer yet, and score all.

    Rows are grouped by video, each of which is read once. A video that cannot be read, or a
    question that does not fit, gives lines with the error. Rows whose video does not exist
    are left for a later run.

    Args:
        model: a `TimeViper` with a tokenizer.
        rows: of one set, from `read_set`.
        folder: made if it does not exist. It gets `answers.jsonl`, `settings.json` and
            `scores.json`; a continued run must have the same settings.
        policy: which frames are looked at, as in `TimeViper.ask`.
        style: one of STYLES.
        max_new_tokens: longest answer.
        progress: called with ("questions", done, all).

    Returns:
        What `report` returns.

    Raises:
        ValueError: a bad argument, or a folder that is a file or holds answers of other settings.
    """
    expect_folder("eval", "out", folder)
    expect_style(style)
    Request("a question", policy=policy, max_new_tokens=max_new_tokens)
    if not rows:
        fail("eval", "rows", "be one or more", list(rows))
    if model.tokenizer is None:
        fail("eval", "model", "have a tokenizer", None)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "set": rows[0].set,
        "rows": _digest(rows),
        "model": weights_digest(model),
    }
    settings |= {"stages": [asdict(stage) for stage in model.backbone.stages]}
    settings |= {"policy": policy, "style": style, "max_new_tokens": max_new_tokens}
    keep_settings(folder / "settings.json", settings, owner="eval")
    with SaidFile(folder / "answers.jsonl") as said:
        asker = _Asker(model, policy, style, max_new_tokens)
        for group in _by_video(rows):
            new = [row for row in group if row.id not in said.keys]
            for line in asker.ask(new) if new and new[0].video.exists() else ():
                said.add(line)
                if progress is not None:
                    progress("questions", len(said.keys), len(rows))
        lines = list(said)
    answers = {line.id: line.answer for line in lines if not line.error}
    failed = len(lines) - len(answers)
    found = report(rows, answers, failed, missing=len(rows) - len(lines))
    text = json.dumps(found, indent=1) + "\n"
    (folder / "scores.json").write_text(text, encoding="utf-8")
    return found


@dataclass(frozen=True)
class _Asker:
    model: TimeViper
    policy: str | None
    style: str
    max_new_tokens: int

    def ask(self, rows: Sequence[SetRow]) -> Iterator[Said]:
        """The answers about one video, or about the same part of it."""
        first, started = rows[0], time.perf_counter()
        try:
            with open_video(first.video, fps=first.fps) as video:
                session = self.model.open(
                    video, policy=self.policy, start=first.start, end=first.end
                )
        except (ValueError, OSError) as error:
            for row in rows:
                yield _said(row, "", str(error), 0.0, time.perf_counter() - started)
            return
        spent = time.perf_counter() - started
        for row in rows:
            started = time.perf_counter()
            answer, fault = "", ""
            try:
                answer = self._answer(session, row)
            except ValueError as error:
                fault = str(error)
            yield _said(row, answer, fault, time.perf_counter() - started, spent)

    def _answer(self, session: Session, row: SetRow) -> str:
        footage = session.footage
        prompt, prefix = asked(row, self.style, footage.duration, len(footage.seconds))
        said = session.ask(prompt, answer_prefix=prefix, max_new_tokens=self.max_new_tokens)
        return str(said.text)


def _said(row: SetRow, answer: str, error: str, seconds: float, video_seconds: float) -> Said:
    times = round(seconds, 4), round(video_seconds, 4)
    return Said(row.id, str(row.video), row.answer, answer, error, *times)


def _by_video(rows: Sequence[SetRow]) -> list[list[SetRow]]:
    """Rows about the same part of the same video together, in the order of their first rows."""
    groups: dict[object, list[SetRow]] = {}
    for row in rows:
        groups.setdefault((row.video, row.start, row.end), []).append(row)
    return list(groups.values())


def _digest(rows: Sequence[SetRow]) -> str:
    """A hash of all that is asked, without the folder that the set lies in."""
    told = [(r.id, r.video.name, r.question, r.options, r.answer, r.start, r.end) for r in rows]
    return sha256(repr(told).encode()).hexdigest()[:16]
