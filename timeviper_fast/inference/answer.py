"""What a question gets back, and the tokens of an answer as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from timeviper_fast.config import TimeViperConfig
from timeviper_fast.errors import fail
from timeviper_fast.inference.ended import Prefill, StageCount
from timeviper_fast.inference.evidence import Evidence
from timeviper_fast.inference.generate import decode
from timeviper_fast.inference.request import OnText, Sampling
from timeviper_fast.inference.thinking import Thought
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.stops import Stop
from timeviper_fast.text.prompt import Prompt, stop_token_ids
from timeviper_fast.video import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answer", "check_tokenizer", "nothing_left", "speak", "stop_ids_of"]


@dataclass(frozen=True)
class Answer:
    """What `ask` returns.

    Attributes:
        text: the answer, without special tokens, the forced prefix or the model's thinking. It is
            "" where the answer ended while the model was thinking.
        token_ids: every generated token, the one that ended the answer included.
        finish: "stop" when a stop token ended it, "length" at max_new_tokens.
        frame_seconds: time of every frame that was looked at, in seconds.
        kept_seconds: one time per vision token that the last layers still saw, in its order. Where
            clips of several frames are encoded or merged together, a token holds patches of its
            whole clip, and its time is that of the clip's middle frame.
        stages: vision tokens per compression stage.
        stops: time and size of the eight stops on the way. Of a session's answers those that read
            the video are empty, as it is read once (`Session.stops`); a batch has one set.
        lost_frames: with `on_error="use"`, frames that the video should hold and does not (an
            estimate where its end is cut off), and frames that were asked for and did not decode.
        notes: what was mended to read the video, in sentences, such as flawed time stamps, and
            how many copies of the last frame fill the last clip; that no vision token was left, and
            that the answer ended within the thinking.
        model_note: what the model can answer, if it says so: the embedded model answers about the
            synthetic world alone. "" for other models.
        evidence: where the model looked when it chose what to keep, by frame; None if no stage
            selects by attention, or no vision token was there.
        thinking: what the model thought first, where it was asked to.
        exact: whether it is the answer of the whole video read in one go, up to rounding. Streams
            with a bound, or with an even rhythm that their stages do not have, are not.
    """

    text: str
    token_ids: tuple[int, ...]
    finish: str
    frame_seconds: tuple[float, ...]
    kept_seconds: tuple[float, ...]
    stages: tuple[StageCount, ...]
    stops: tuple[Stop, ...]
    lost_frames: int = 0
    notes: tuple[str, ...] = ()
    model_note: str = ""
    evidence: Evidence | None = None
    exact: bool = True
    thinking: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def stop_ids_of(tokenizer: PreTrainedTokenizerBase, config: TimeViperConfig) -> set[int]:
    """Ids that end an answer: of the tokenizer, the chat template and the LLM's config."""
    return {*stop_token_ids(tokenizer, config.template), *config.backbone.eos_token_ids}


def check_tokenizer(config: TimeViperConfig, prompt: Prompt, stop_ids: set[int]) -> None:
    """Raise an ArgumentError unless the model has an embedding for every id."""
    highest = max(*prompt.before, *chain(*prompt.between), *prompt.after, *stop_ids)
    if highest >= config.backbone.vocab_size:
        rule = f"give ids below the model's vocabulary size ({config.backbone.vocab_size})"
        fail("ask", "the tokenizer", rule, highest, "they belong to different models")


def nothing_left(frames: int, kept: int) -> tuple[str, ...]:
    """A sentence that says that the stages dropped every vision token; () if one is left."""
    if kept:
        return ()
    few = "1 frame is" if frames == 1 else f"{frames} frames are"
    return (
        f"No vision token was left: {few} too few for these stages; "
        '--stages none (stages="none" in Python) keeps all.',
    )


def speak(
    backbone: HybridBackbone,
    tokenizer: PreTrainedTokenizerBase,
    read: Prefill,
    *,
    max_new_tokens: int,
    stop_ids: set[int],
    sampling: Sampling,
    on_text: Sequence[OnText | None] = (),
    thinks: Sequence[bool] = (),
    progress: Progress | None = None,
) -> list[tuple[list[int], str]]:
    """Decode all rows to their ends: the ids of each, and the text that it says.

    Args:
        on_text: for each row, what gets the pieces of its answer as soon as they are whole words;
            () for none.
        thinks: for each row, whether it begins with thinking, which is no part of the text; () for
            none.
    """
    heard = on_text or [None] * len(read.logits)
    thoughts = [Thought(tokenizer, think) for think in thinks or [False] * len(read.logits)]
    streamers = [None if one is None else _text_streamer(tokenizer, one) for one in heard]
    rows: list[list[int]] = [[] for _ in read.logits]
    for step, tokens in enumerate(
        decode(backbone, read, max_new_tokens=max_new_tokens, stop_ids=stop_ids, sampling=sampling),
        start=1,
    ):
        for row, thought, streamer, token in zip(rows, thoughts, streamers, tokens.tolist()):
            # a row that has ended repeats its last token until all have
            if row and row[-1] in stop_ids:
                continue
            row.append(token)
            if thought.add(token) and streamer is not None:
                streamer.put(torch.tensor([token]))
                if token in stop_ids:
                    streamer.end()
        if progress is not None:
            progress("tokens", step, max_new_tokens)
    for row, streamer in zip(rows, streamers):
        if streamer is not None and row[-1] not in stop_ids:
            streamer.end()
    return [(ids, thought.text) for ids, thought in zip(rows, thoughts)]


def _text_streamer(tokenizer: PreTrainedTokenizerBase, on_text: OnText) -> Any:
    """A transformers streamer that hands finished pieces of text to `on_text`."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                on_text(text)

    return Streamer(tokenizer, skip_special_tokens=True)
