"""The answers of a run on disk: the next run reads them first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timeviper_fast.evaluation.lmms.query import OWNER, Key, Query
from timeviper_fast.evaluation.rows import LineFile

__all__ = ["Said", "Told", "ToldFile"]


@dataclass(frozen=True)
class Said:
    """What a query got.

    Attributes:
        text: the answer, cut where the task says; "" after an error.
        tokens: generated tokens.
        loss: minus the log-likelihood of the continuation, in nats; None if an answer was asked.
        greedy: whether each token of the continuation has the largest logit.
        error: why there is no answer; "" if there is one.
    """

    text: str = ""
    tokens: int = 0
    loss: float | None = None
    greedy: bool = False
    error: str = ""


@dataclass(frozen=True)
class Told:
    """One line: the query's key, and what `Said` has."""

    task: str
    doc_id: int | str
    asked: str
    text: str
    tokens: int
    loss: float | None
    greedy: bool
    error: str

    @property
    def key(self) -> Key:
        """Of the query."""
        return (self.task, self.doc_id, self.asked)

    @property
    def said(self) -> Said:
        """Without the query."""
        return Said(self.text, self.tokens, self.loss, self.greedy, self.error)


class ToldFile(LineFile[Told]):
    """The answers of a run on disk. A query that failed may have a later line with its answer."""

    owner, run, argument = OWNER, "a run of lmms-eval", "resume"

    def parse(self, fields: dict[str, Any]) -> Told:
        return Told(**fields)

    def tell(self, query: Query, said: Said) -> None:
        """Write what a query got."""
        self.add(Told(*query.key, **vars(said)))

    def answers(self) -> dict[Key, Said]:
        """What has been answered, by query; failed ones are left out."""
        return {line.key: line.said for line in self.rows if not line.error}
