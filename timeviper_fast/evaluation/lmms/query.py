"""A request of lmms-eval as plain data, which can be compared, hashed and sent to a process."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from timeviper_fast.errors import ArgumentError, fail
from timeviper_fast.inference.request import Question, Sampling

__all__ = [
    "OWNER",
    "Key",
    "Options",
    "Query",
    "Visual",
    "ignored_options",
    "options_of",
    "visual_of",
]

OWNER = "timeviper_fast"

# the path of a video or an image, an image file's bytes, or nothing to see
Visual = str | bytes | None
Key = tuple[str, int | str, str]

_KNOWN = {"max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty"}
_KNOWN |= {"num_beams", "until"}


@dataclass(frozen=True)
class Options:
    """How an answer is generated.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        sampling: how tokens are drawn; None is greedy.
        until: the answer ends before the first of these texts.
    """

    max_new_tokens: int = Question.max_new_tokens
    sampling: Sampling | None = None
    until: tuple[str, ...] = ()

    def cut(self, text: str) -> str:
        """The answer up to the first of the texts that end it."""
        ends = [text.find(end) for end in self.until]
        return text[: min((end for end in ends if end >= 0), default=len(text))]


@dataclass(frozen=True)
class Query:
    """One request.

    Attributes:
        task, split, doc_id: the document.
        text: the question.
        visual: what it is about.
        options: how its answer is generated.
        continuation: the answer whose likelihood is wanted; None for an answer.
        draw: which of several draws of the same question.
        fault: why what it is about cannot be had; "" if it can.
    """

    task: str
    split: str
    doc_id: int | str
    text: str
    visual: Visual
    options: Options = Options()
    continuation: str | None = None
    draw: int = 0
    fault: str = ""

    @property
    def key(self) -> Key:
        """Identifies the query. Of a path the name counts, so that folders may move."""
        seen = Path(self.visual).name if isinstance(self.visual, str) else self.visual
        asked = (self.split, self.text, seen, self.options, self.continuation, self.draw)
        return (self.task, self.doc_id, sha256(repr(asked).encode()).hexdigest()[:16])

    @property
    def drawn(self) -> bool:
        """Whether asking again may give another answer."""
        sampling = self.options.sampling
        return sampling is not None and sampling.temperature > 0


def options_of(given: Mapping[str, Any]) -> Options:
    """Options from a task's generation_kwargs, which are not changed.

    Tokens are drawn if `temperature` is above 0 and `do_sample` is not False; `do_sample` without a
    temperature means 1. None means an option that is not given.

    Raises:
        ArgumentError: beam search, or a value that breaks its rule.
    """
    known = {name: value for name, value in given.items() if value is not None}
    if (beams := known.get("num_beams", 1)) != 1:
        fail(OWNER, "num_beams", "be 1 (there is no beam search)", beams)
    until = known.get("until", ())
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, (list, tuple)) or not all(isinstance(x, str) and x for x in until):
        fail(OWNER, "until", "be a text that is not empty, or a list of them", until)
    limit = known.get("max_new_tokens", Options.max_new_tokens)
    sample = known.get("do_sample")
    temperature = known.get("temperature", 1.0 if sample else 0.0)
    drawn: dict[str, Any] = {}
    if sample is not False and temperature:
        names = ("top_p", "top_k")
        drawn = {"temperature": temperature, **{n: known[n] for n in names if n in known}}
    if "repetition_penalty" in known:
        drawn["repetition_penalty"] = known["repetition_penalty"]
    options = Options(limit, Sampling(**drawn) if drawn else None, tuple(until))
    # checks the limit
    Question("a question", options.max_new_tokens, options.sampling)
    return options


def ignored_options(given: Collection[str]) -> list[str]:
    """Names of generation_kwargs that mean nothing to this model."""
    return sorted(set(given) - _KNOWN)


def visual_of(visuals: Sequence[Any] | None) -> Visual:
    """What `TimeViper.open` takes for a document's visuals; None where there are none.

    Raises:
        ArgumentError: neither one video nor one image.
    """
    found = [] if visuals is None else list(visuals)
    if not found:
        return None
    if len(found) == 1 and isinstance(found[0], (str, os.PathLike)):
        return os.fspath(found[0])
    if len(found) == 1 and hasattr(found[0], "save") and hasattr(found[0], "convert"):
        file = io.BytesIO()
        found[0].convert("RGB").save(file, "PNG")
        return file.getvalue()
    kinds = json.dumps([type(visual).__name__ for visual in found[:3]])
    what = f"{len(found)} visuals ({kinds})"
    raise ArgumentError(OWNER, "doc_to_visual", "give one video's path or one image", what)
