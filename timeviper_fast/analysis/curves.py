"""Accuracy and likelihood of answers, by the first blocked layer or by dropped vision tokens.

x is a layer and y a metric; the dashed line of such figures is `Curve.whole`, the model as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from timeviper_fast.analysis.blocking import Blocking, blocked
from timeviper_fast.config import ATTENTION, CompressionStage, Selection
from timeviper_fast.errors import fail
from timeviper_fast.inference.likelihood import likelihood
from timeviper_fast.inference.request import Question
from timeviper_fast.inference.session import Session
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video import Progress

__all__ = [
    "Curve",
    "Example",
    "Measure",
    "answer_log_likelihood",
    "blocking_curve",
    "measure",
    "redundancy_curve",
]


@dataclass(frozen=True)
class Example:
    """A question about a video, with its reference answer.

    Attributes:
        video: what `TimeViper.open` takes. Examples in a row with the same object are asked in one
            session; a `.features` file spares the vision encoder at each point of a curve.
        question: its words, with its options.
        answer: the reference answer. Its first tokens are those behind `answer_prefix`.
        answer_prefix: words that the answer is made to begin with.
    """

    video: Any
    question: str
    answer: str
    answer_prefix: str = ""


@dataclass(frozen=True)
class Measure:
    """How well a list of examples was answered.

    Attributes:
        right: what the judge gave all greedy answers together: how many are right, or the sum of
            their overlaps (IoU) with the true spans.
        n: all examples.
        log_likelihood: mean over the examples of the reference answer's log-likelihood, in nats.
        per_token: the same, divided by all reference tokens.
        layer: the first blocked layer, or the layer that a stage stands before; None without.
        drop: share of the vision tokens that were dropped; None where nothing was done to them.
    """

    right: float
    n: int
    log_likelihood: float
    per_token: float
    layer: int | None = None
    drop: float | None = None

    @property
    def accuracy(self) -> float:
        """right / n, which is mIoU where the judge gives overlaps; NaN for n = 0."""
        return self.right / self.n if self.n else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "accuracy": self.accuracy}


@dataclass(frozen=True)
class Curve:
    """Measures by layer.

    Attributes:
        settings: what was done, as plain data.
        whole: the model as it is, for the dashed line.
        points: one for each layer, or for each layer and drop rate.
    """

    settings: dict[str, Any]
    whole: Measure
    points: tuple[Measure, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        points = [point.to_dict() for point in self.points]
        return {"settings": self.settings, "whole": self.whole.to_dict(), "points": points}


Judge = Callable[[str, str], float]


def _same(answer: str, reference: str) -> bool:
    """Exact match, apart from case, spaces at both ends and a full stop."""
    bare, other = (x.strip().removesuffix(".").casefold() for x in (answer, reference))
    return bare == other


def answer_log_likelihood(
    session: Session, question: str, answer_ids: Sequence[int], *, answer_prefix: str = ""
) -> float:
    """The log-likelihood of an answer to a session's question, in nats: the sum over its tokens.

    Raises:
        ValueError: no token.
    """
    room = max(len(answer_ids), 1)
    read = session.read(Question(question, room, answer_prefix=answer_prefix))
    return likelihood(session.model.backbone, read, answer_ids).log


def measure(
    model: TimeViper,
    examples: Sequence[Example],
    *,
    judge: Judge = _same,
    max_new_tokens: int = 32,
    progress: Progress | None = None,
    **opening: Any,
) -> Measure:
    """Ask every example, and score its reference answer.

    Args:
        model: the model, or a blocked view of it.
        examples: one or more.
        judge: called with (answer, reference answer); 1 or True for a right answer, 0 for a wrong
            one, or a share such as an IoU.
        max_new_tokens: longest answer.
        progress: called with ("questions", done, all).
        opening: options of `TimeViper.open`, such as `stages` and `policy`.

    Raises:
        ValueError: no example, or what `open` and `ask` refuse.
    """
    if not examples:
        fail("measure", "examples", "hold an example or more", examples)
    right, total, tokens = 0.0, 0.0, 0
    for done, (session, example) in enumerate(_asked(model, examples, opening), start=1):
        prefix = example.answer_prefix
        answer = session.ask(example.question, max_new_tokens=max_new_tokens, answer_prefix=prefix)
        right += judge(answer.text, example.answer)
        ids = session.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        total += answer_log_likelihood(session, example.question, ids, answer_prefix=prefix)
        tokens += len(ids)
        if progress is not None:
            progress("questions", done, len(examples))
    return Measure(right, len(examples), total / len(examples), total / tokens)


def _asked(
    model: TimeViper, examples: Sequence[Example], opening: dict[str, Any]
) -> Iterator[tuple[Session, Example]]:
    """Each example with a session of its video; the video of the one before is not opened again."""
    session, video = None, None
    for example in examples:
        if session is None or example.video is not video:
            session, video = model.open(example.video, **opening), example.video
        yield session, example


def blocking_curve(
    model: TimeViper,
    examples: Sequence[Example],
    blocking: Blocking,
    *,
    layers: Sequence[int] | None = None,
    whole: Measure | None = None,
    **options: Any,
) -> Curve:
    """What is lost when text does not see vision from a layer on, for each of these layers.

    Args:
        model: the model; it is not changed.
        examples: one or more.
        blocking: which rows, and how; its `from_layer` is not read.
        layers: the first blocked layers; None takes all, from 0 on.
        whole: the unblocked model's measure, if it is known.
        options: as in `measure`.

    Raises:
        ValueError: as `measure` and `blocked`.
    """
    layers = range(len(model.backbone.layers)) if layers is None else layers
    whole = whole or measure(model, examples, **options)
    points = []
    for layer in layers:
        view = blocked(model, replace(blocking, from_layer=layer))
        points.append(replace(measure(view, examples, **options), layer=layer))
    settings = {"kind": "blocking", **blocking.to_dict()}
    del settings["from_layer"]
    return Curve(settings, whole, tuple(points))


def redundancy_curve(
    model: TimeViper,
    examples: Sequence[Example],
    select: Selection,
    *,
    drops: Sequence[float] = (0.5, 0.9),
    layers: Sequence[int] | None = None,
    score: str = "normed",
    whole: Measure | None = None,
    **options: Any,
) -> Curve:
    """What is lost when a share of the vision tokens is dropped before a layer.

    One stage without transfer takes the place of the model's own; `whole` has no stage at all.

    Args:
        model: the model; it is not changed.
        examples: one or more.
        select: "uniform", or "attention", which stands before attention layers alone.
        drops: shares that are dropped, in [0, 1).
        layers: where the stage stands; None takes all layers that it can stand before.
        score: the stream that attention scores, "raw" or "normed".
        whole: the measure without a stage, if it is known.
        options: as in `measure`, but `stages`.

    Raises:
        ValueError: as `measure`, or a stage that the model cannot have.
    """
    backbone = model.config.backbone
    if layers is None:
        own = backbone.layers_of(ATTENTION) if select == "attention" else None
        layers = own or range(0, backbone.num_hidden_layers, backbone.layers_per_block)
    whole = whole or measure(model, examples, stages=(), **options)
    points = []
    for layer in layers:
        for drop in drops:
            # 1 - 0.9 is below 0.1 in float64, and 250 tokens would leave 24
            keep = round(1 - drop, 12)
            stage = CompressionStage(layer, select, keep, transfer=False, score=score)  # type: ignore[arg-type]
            found = measure(model, examples, stages=(stage,), **options)
            points.append(replace(found, layer=layer, drop=drop))
    settings = {"kind": "redundancy", "select": select, "score": score, "transfer": False}
    return Curve(settings, whole, tuple(points))
