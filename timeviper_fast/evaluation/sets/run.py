"""Ask all questions of a set: one session for each video, one line for each answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from timeviper_fast.errors import expect_folder, fail
from timeviper_fast.evaluation.evidence_score import (
    Pointing,
    evidence_by,
    evidence_of_line,
    judge_evidence,
    true_frames,
)
from timeviper_fast.evaluation.needle import expect_attention, weights_digest
from timeviper_fast.evaluation.rows import LineFile, keep_settings, write_json
from timeviper_fast.evaluation.sets.prompts import asked, expect_style, tells_duration
from timeviper_fast.evaluation.sets.report import report
from timeviper_fast.evaluation.sets.row import SetRow, Span
from timeviper_fast.evaluation.sets.subtitles import Subtitles, spoken, subtitles_of
from timeviper_fast.inference.evidence import Evidence
from timeviper_fast.inference.request import Request
from timeviper_fast.inference.room import FAULTS
from timeviper_fast.inference.session import Session
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video import Progress, open_video

__all__ = ["Said", "SaidFile", "expect_spans", "run_eval"]


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
        evidence: with the option, whether the evidence lies in the row's spans; None if it has
            none, and after an error.
    """

    id: str
    video: str
    truth: str | Span
    answer: str
    error: str
    seconds: float
    video_seconds: float
    evidence: dict[str, Pointing] | None = None

    @property
    def key(self) -> str:
        """Identifies the line."""
        return self.id


class SaidFile(LineFile[Said]):
    """The answers of a run on disk."""

    owner, run = "eval", "an eval run"

    def parse(self, fields: dict[str, Any]) -> Said:
        truth, evidence = fields["truth"], evidence_of_line(fields.get("evidence"))
        truth = truth if isinstance(truth, str) else tuple(truth)
        return Said(**{**fields, "truth": truth, "evidence": evidence})


def run_eval(
    model: TimeViper,
    rows: Sequence[SetRow],
    folder: str | Path,
    *,
    policy: str | None = None,
    style: str = "paper",
    max_new_tokens: int = 128,
    evidence: bool = False,
    subtitles: bool = False,
    retry: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask all rows that have no answer yet, and score all.

    Rows are grouped by video, each of which is read once. A video that cannot be read, or a
    question that does not fit the window or the device's memory, gives lines with the error. Rows
    whose video does not exist are left for a later run.

    Args:
        model: a `TimeViper` with a tokenizer.
        rows: of one set, from `read_set`.
        folder: made if it does not exist. It gets `answers.jsonl`, `settings.json` and
            `scores.json`; a continued run must have the same settings.
        policy: which frames are looked at, as in `TimeViper.ask`.
        style: one of STYLES.
        max_new_tokens: longest answer.
        evidence: whether to score where the model looked, for rows with spans. It asks one neutral
            question more about each video.
        subtitles: whether prompts show the lines that are spoken while a frame is shown, for
            videos that have them.
        retry: whether rows whose line has an error are asked again.
        progress: called with ("questions", done, all).

    Returns:
        What `report` returns, and "errors" ({error: number of lines}). With `evidence` it has
        "evidence", which is `evidence_score` of "all" rows and of each group, and with `subtitles`
        "with_subtitles", the number of rows whose video has some.

    Raises:
        ValueError: a bad argument, a folder that is a file or holds answers of other settings, or
            `evidence` for rows without spans, or a model without a stage that selects by attention,
            or `subtitles` for rows without them, or subtitles that break their format.
    """
    expect_folder("eval", "out", folder)
    expect_style(style)
    Request("a question", policy=policy, max_new_tokens=max_new_tokens)
    if not rows:
        fail("eval", "rows", "be one or more", list(rows))
    if model.tokenizer is None:
        fail("eval", "model", "have a tokenizer", None)
    if evidence:
        expect_spans(rows)
        expect_attention("eval", model)
    lines_of = subtitles_of(rows) if subtitles else {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "set": rows[0].set,
        "model": weights_digest(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    settings |= {"stages": [asdict(stage) for stage in model.backbone.stages]}
    settings |= {"policy": policy, "style": style, "max_new_tokens": max_new_tokens}
    settings |= {"evidence": evidence, "subtitles": subtitles}
    settings["questions"] = _digest(rows, lines_of)
    keep_settings(folder / "settings.json", settings, owner="eval")
    with SaidFile(folder / "answers.jsonl") as said:
        if retry:
            said.drop(lambda line: bool(line.error))
        asker = _Asker(model, policy, style, max_new_tokens, evidence, lines_of)
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
    found["errors"] = dict(Counter(line.error for line in lines if line.error))
    if subtitles:
        found["with_subtitles"] = sum(row.subtitles in lines_of for row in rows)
    if evidence:
        found["evidence"] = _looked(rows, lines)
    write_json(folder / "scores.json", found)
    return found


def expect_spans(rows: Sequence[SetRow]) -> None:
    """Raise an ArgumentError if no row says when its answer is shown."""
    if not any(row.spans for row in rows):
        rule = "be left out for rows without true spans (charades-sta and lvbench have them)"
        fail("eval", "evidence", rule, rows[0].set)


@dataclass(frozen=True)
class _Asker:
    model: TimeViper
    policy: str | None
    style: str
    max_new_tokens: int
    evidence: bool
    subtitles: Subtitles

    def ask(self, rows: Sequence[SetRow]) -> Iterator[Said]:
        """The answers about one video, or about the same part of it."""
        first, started = rows[0], time.perf_counter()
        try:
            with open_video(first.video, fps=first.fps) as video:
                session = self.model.open(
                    video, policy=self.policy, start=first.start, end=first.end
                )
        except FAULTS as error:
            for row in rows:
                yield _said(row, "", str(error), 0.0, time.perf_counter() - started)
            return
        spent = time.perf_counter() - started
        for row in rows:
            started = time.perf_counter()
            answer, fault, evidence = "", "", None
            try:
                answer, looked = self._answer(session, row)
                lasted = time.perf_counter() - started
                if self.evidence and row.spans:
                    evidence = _judged(looked, session.control(), row)
            except FAULTS as error:
                answer, fault, lasted = "", str(error), time.perf_counter() - started
            yield _said(row, answer, fault, lasted, spent, evidence)

    def _answer(self, session: Session, row: SetRow) -> tuple[str, Evidence | None]:
        footage = session.footage
        own = self.subtitles.get(row.subtitles, ()) if row.subtitles else ()
        shown = spoken(own, [row.subtitles_start + at for at in footage.seconds.tolist()])
        seen = footage.duration, len(footage.seconds)
        prompt, prefix = asked(row, self.style, *seen, subtitles=shown)
        said = session.ask(
            prompt,
            answer_prefix=prefix,
            max_new_tokens=self.max_new_tokens,
            mention_duration=False if tells_duration(row, self.style) else None,
        )
        return str(said.text), said.evidence


def _said(
    row: SetRow,
    answer: str,
    error: str,
    seconds: float,
    video_seconds: float,
    evidence: dict[str, Pointing] | None = None,
) -> Said:
    times = round(seconds, 4), round(video_seconds, 4)
    return Said(row.id, str(row.video), row.answer, answer, error, *times, evidence)


def _judged(
    looked: Evidence | None, control: Evidence | None, row: SetRow
) -> dict[str, Pointing] | None:
    """Whether the evidence lies in the row's spans; None if no vision token was there."""
    if looked is None or control is None:
        return None
    return judge_evidence(looked, control, true_frames(looked.seconds, row.spans))


def _looked(rows: Sequence[SetRow], lines: Sequence[Said]) -> dict[str, Any]:
    """The scores of the evidence: of all rows with spans, and of each group."""
    groups = {row.id: [f"{n} {v}" for n, of in row.groups.items() for v in of] for row in rows}
    return evidence_by(lines, lambda line: ("all", *groups[line.id]), lambda line: line.evidence)


def _by_video(rows: Sequence[SetRow]) -> list[list[SetRow]]:
    """Rows about the same part of the same video together, in the order of their first rows."""
    groups: dict[object, list[SetRow]] = {}
    for row in rows:
        groups.setdefault((row.video, row.start, row.end), []).append(row)
    return list(groups.values())


def _digest(rows: Sequence[SetRow], subtitles: Subtitles) -> str:
    """A hash of all that is asked and shown, without the folder that the set lies in."""
    elsewhere = dict.fromkeys(("where", "video", "subtitles"))
    told = []
    for row in rows:
        lines = subtitles.get(row.subtitles) if row.subtitles else None
        told.append((row.video.name, lines, {**asdict(row), **elsewhere}))
    return sha256(repr(told).encode()).hexdigest()[:16]
