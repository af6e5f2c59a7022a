"""The class that lmms-eval loads; this file is imported by lmms-eval alone."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import ArgumentError, expect_folder, fail
from timeviper_fast.evaluation.lmms.asker import Load, Numbered
from timeviper_fast.evaluation.lmms.query import (
    OWNER,
    Key,
    Options,
    Query,
    Visual,
    ignored_options,
    options_of,
    visual_of,
)
from timeviper_fast.evaluation.lmms.told import Said, ToldFile
from timeviper_fast.evaluation.lmms.workers import answerer
from timeviper_fast.evaluation.rows import keep_settings
from timeviper_fast.inference.request import Request

__all__ = ["TimeViperLmms"]

_KEYWORDS = "pretrained, sample, stages, dtype, device, devices, resume, batch_size"

_SHARED = (
    "{0} processes share the documents one by one, so that each opens every video. Give one "
    'process several devices (devices="cuda:0,cuda:1"), or start one process for each GPU, with '
    "--offset and --limit."
)


class TimeViperLmms(lmms):
    """`--model timeviper_fast` of lmms-eval 0.7.3.

    Requests are grouped by video. Each video is read once, and its questions are asked in one
    session. An answer that is empty because of an error is counted at the end.

    Args:
        pretrained: a model directory, a Hub id, or "timeviper-fast/tiny".
        sample: which frames are looked at, such as uniform:128; None is the model's own policy.
        stages: where vision tokens are dropped, in the words of `--stages`.
        dtype: of the weights.
        device: where the model runs.
        devices: several, as "cuda:0,cuda:1": each has a model, and gets whole groups.
        resume: a folder. Each answer becomes a line there at once, and a later run asks only what
            has no answer. The model and its settings must be the same.
        batch_size: questions of a video that are answered together; above 1 answers may differ by
            rounding.

    Raises:
        ValueError: an unknown keyword, or one that breaks its rule.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = TINY,
        sample: str | None = None,
        stages: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        devices: str | None = None,
        resume: str | None = None,
        batch_size: int | str = 1,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            fail(OWNER, "model_args", f"be of {_KEYWORDS}", next(iter(unknown)))
        self._rank = int(os.environ.get("RANK", 0))
        self._world_size = int(os.environ.get("WORLD_SIZE", 1))
        places = _places(device, devices, self._world_size)
        policy, folder = _words(sample), _words(resume)
        Request("a question", policy=policy)
        if folder is not None:
            expect_folder(OWNER, "resume", folder)
        names = (str(_words(pretrained)), _words(dtype), _words(stages))
        load = Load(*names, policy, _count(batch_size))
        # lmms-eval hides Python's warnings
        if self._world_size > 1 and self._rank == 0:
            _say(_SHARED.format(self._world_size))
        self._answerer = answerer(load, places)
        self._device = torch.device(places[0] or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._file = None if folder is None else self._opened(Path(folder))

    @property
    def device(self) -> torch.device:
        """Where lmms-eval may put the tensors that its processes exchange."""
        shared = torch.distributed.is_available() and torch.distributed.is_initialized()
        if shared and torch.distributed.get_backend() == "gloo":
            return torch.device("cpu")
        return self._device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The answers, in the order of the requests, each with its number of generated tokens."""
        arguments = [request.args for request in requests]
        _say_ignored(given for _, given, *_ in arguments)
        queries = [
            self._query(text, document, doc_to_visual, options=options_of(given))
            for text, given, doc_to_visual, *document in arguments
        ]
        return [_result(said) for said in self._told(queries)]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """The answers of all rounds of each request.

        `doc_to_text` gives each further round: visuals, text, whether that was all, the answers so
        far, and what it wants back. A round is a question of its own: it is not told the answers
        before it unless `doc_to_text` writes them into its text.
        """
        arguments = [request.args for request in requests]
        _say_ignored(given for _, given, *_ in arguments)
        rounds = []
        for text, given, doc_to_visual, doc_to_text, *document in arguments:
            query = self._query(text, document, doc_to_visual, options=options_of(given))
            rounds.append(_Rounds(query, doc_to_text, self._document(*document)))
        left = rounds
        while left:
            said = self._told([one.query for one in left])
            left = [one for one, answer in zip(left, said) if one.goes_on(answer.text)]
        return [one.said for one in rounds]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """(value, whether greedy decoding says it) of each continuation, as a result's text.

        lmms-eval 0.7.3 turns a bare pair into a string, and hands a result's text on as it is.

        lmms-eval takes the choice with the smallest value as the model's answer. So a continuation
        that is text, as of multiple choice, gets its loss, which is minus its log-likelihood. One
        that `doc_to_target` gives, as of the output type loglikelihood, gets its log-likelihood.
        Both are sums over its tokens, in nats.

        Raises:
            RuntimeError: a request has no answer. No number says that, and the first choice would
                count as the answer.
        """
        queries, signs = [], []
        for arguments in (request.args for request in requests):
            if len(arguments) != 6:
                fail(OWNER, "metric_list", "be without acc_mutual_info", arguments)
            text, wanted, doc_to_visual, *document = arguments
            words = wanted(self._document(*document)) if callable(wanted) else wanted
            signs.append(-1 if callable(wanted) else 1)
            queries.append(self._query(text, document, doc_to_visual, continuation=str(words)))
        found = self._told(queries)
        if missing := [said.error for said in found if said.loss is None]:
            raise RuntimeError(f"{OWNER}: {len(missing)} likelihoods are missing: {missing[0]}")
        pairs = [(sign * (said.loss or 0.0), said.greedy) for sign, said in zip(signs, found)]
        return [GenerationResult(pair) for pair in pairs]

    def clean(self) -> None:
        """End the processes and close the file; lmms-eval calls it behind the last request."""
        self._answerer.close()
        if self._file is not None:
            self._file.close()
        super().clean()

    def _opened(self, folder: Path) -> ToldFile:
        folder.mkdir(parents=True, exist_ok=True)
        settings = self._answerer.settings
        keep_settings(folder / "settings.json", settings, owner=OWNER, argument="resume")
        part = f"-{self._rank}-of-{self._world_size}" if self._world_size > 1 else ""
        return ToldFile(folder / f"answers{part}.jsonl")

    def _document(self, doc_id: int | str, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _query(
        self,
        text: str,
        document: Sequence[Any],
        doc_to_visual: Callable[[Any], Any],
        *,
        options: Options | None = None,
        continuation: str | None = None,
    ) -> Query:
        """The query about a document (doc_id, task, split)."""
        doc_id, task, split = document
        visual, fault = None, ""
        try:
            visual = visual_of(doc_to_visual(self._document(*document)))
        except ArgumentError as error:
            fault = str(error)
        # code of the task, which may end in sys.exit where a file does not exist
        except (Exception, SystemExit) as error:
            fault = f"doc_to_visual: {type(error).__name__}: {error}"
        options = options or Options()
        return Query(task, split, doc_id, text, visual, options, continuation, fault=fault)

    def _told(self, queries: Sequence[Query]) -> list[Said]:
        """What each query gets, from the file or a model."""
        queries = _with_draws(queries)
        keys = [query.key for query in queries]
        found = {} if self._file is None else self._file.answers()
        if known := sum(key in found for key in keys):
            _say(f"{known} of {len(keys)} requests were answered before")
        # equal queries are asked once
        new = {key: item for key, item in zip(keys, enumerate(queries)) if key not in found}
        with tqdm(total=len(new), desc=OWNER, disable=self._rank != 0) as bar:
            for place, said in self._answered(list(new.values())):
                found[keys[place]] = said
                if self._file is not None:
                    self._file.tell(queries[place], said)
                bar.update()
        told = [found[key] for key in keys]
        if errors := [said.error for said in told if said.error]:
            later = "" if self._file is None else "; the next run asks again"
            _say(f"{len(errors)} of {len(told)} requests failed{later}. The first: {errors[0]}")
        return told

    def _answered(self, items: Sequence[Numbered]) -> Iterator[tuple[int, Said]]:
        groups: dict[Visual, list[Numbered]] = {}
        for place, query in items:
            if query.fault:
                yield place, Said(error=query.fault)
            else:
                groups.setdefault(query.visual, []).append((place, query))
        yield from self._answerer.answers(list(groups.values()))


class _Rounds:
    """The rounds of a request.

    Attributes:
        query: of the round that comes.
        said: the answers so far.
    """

    def __init__(self, query: Query, doc_to_text: Callable[..., Any], document: Any) -> None:
        self.query, self.said = query, list[str]()
        self._next, self._document, self._round, self._info = doc_to_text, document, 0, None

    def goes_on(self, answer: str) -> bool:
        """Add an answer; returns whether there is another round."""
        self._round += 1
        visuals, text, over, said, self._info = self._next(
            self._document,
            previous_output=[*self.said, answer],
            round_idx=self._round,
            previous_round_info=self._info,
        )
        self.said = list(said)
        if not over:
            self.query = replace(self.query, text=text, visual=visual_of(visuals), fault="")
        return not over


def _with_draws(queries: Sequence[Query]) -> list[Query]:
    """Number the draws of equal queries, which each want an answer of their own."""
    drawn: Counter[Key] = Counter()
    found = []
    for query in queries:
        if query.drawn:
            key = query.key
            query, drawn[key] = replace(query, draw=drawn[key]), drawn[key] + 1
        found.append(query)
    return found


def _result(said: Said) -> GenerationResult:
    return GenerationResult(said.text, TokenCounts(output_tokens=said.tokens))


def _places(device: str | None, devices: str | None, processes: int) -> list[str | None]:
    """The devices of this process; None is the best there is."""
    if devices is None:
        if device is None and processes > 1 and torch.cuda.is_available():
            return [f"cuda:{os.environ.get('LOCAL_RANK', 0)}"]
        return [_words(device)]
    if device is not None:
        fail(OWNER, "device", "be left out beside devices", device)
    if processes > 1:
        fail(OWNER, "devices", "be left out where several processes run", devices)
    names = [name.strip() for name in str(_words(devices)).split(",")]
    if not all(names):
        fail(OWNER, "devices", "be devices with commas between, in quotation marks", devices)
    return list(names)


def _words(value: Any) -> str | None:
    """An argument as text: lmms-eval makes numbers of some, and leaves quotation marks in place."""
    if value is None:
        return None
    text = str(value).strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _count(batch_size: int | str) -> int:
    text = str(batch_size)
    if not (text.isdecimal() and int(text) > 0):
        fail(OWNER, "batch_size", "be a positive integer", batch_size)
    return int(text)


def _say_ignored(given: Iterable[Mapping[str, Any]]) -> None:
    """Name the generation_kwargs that mean nothing to this model."""
    names = {name for one in given for name in ignored_options(one)}
    if names:
        _say(f"generation_kwargs that are not used: {', '.join(sorted(names))}")


def _say(text: str) -> None:
    tqdm.write(f"{OWNER}: {text}", file=sys.stderr)
