"""What the layers look at for a question about a video, read whole or in a session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timeviper_fast.analysis.heads import numbers
from timeviper_fast.analysis.look import Looking, look, look_behind
from timeviper_fast.analysis.view import View
from timeviper_fast.errors import fail
from timeviper_fast.inference.answer import check_tokenizer, speak, stop_ids_of
from timeviper_fast.inference.encode import encode_video, token_seconds
from timeviper_fast.inference.feature_file import Features, is_feature_file
from timeviper_fast.inference.generate import prefill
from timeviper_fast.inference.labelled import Labeller, runs_of
from timeviper_fast.inference.request import Opening, Question, question_prompt, sampling_of
from timeviper_fast.inference.session import Session
from timeviper_fast.layout import Segment
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stages import parse_stages
from timeviper_fast.stops import StopWatch
from timeviper_fast.video import Progress, Video, open_video

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prompted", "Seen", "look_asked", "look_at", "prompted"]


@dataclass(frozen=True)
class Seen:
    """What the layers look at, and when the vision tokens are shown.

    Attributes:
        view: of the layers.
        token_seconds: (vision tokens,) float64, of each vision token of the prompt; for a layer's
            tokens, `view.layers[i].groups.seconds(seen.token_seconds)`.
        frame_tokens: vision tokens of each frame; for a layer's tokens, `groups.frames(...)`.
    """

    view: View
    token_seconds: Tensor
    frame_tokens: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, for JSON; `layer_seconds` has each layer's tokens, None for text."""
        layers = [view.groups.seconds(self.token_seconds) for view in self.view.layers]
        seconds = [numbers(layer) for layer in layers]
        return {**self.view.to_dict(), "layer_seconds": seconds}


@dataclass(frozen=True)
class Prompted:
    """A video and a question as embeddings, which are looked at as often as one likes.

    Attributes:
        model: with the stages that the video is read with.
        tokenizer: of the model.
        embeddings: (1, n, d_model), the prompt.
        segment: where the vision lies in it.
        token_seconds, frame_tokens: as in `Seen`.
        notes: what is known of flaws of the video.
    """

    model: TimeViperNetwork
    tokenizer: PreTrainedTokenizerBase
    embeddings: Tensor
    segment: Segment
    token_seconds: Tensor
    frame_tokens: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @torch.no_grad()
    def look(self, answer: Sequence[int] = (), looking: Looking | None = None) -> Seen:
        """What `look_at` sees."""
        said = self.model.embed_text("answer", _ids(self.model, answer))
        view = look(self.model.backbone, self.embeddings, self.segment, said, looking)
        return Seen(view, self.token_seconds, self.frame_tokens)

    @torch.no_grad()
    def answer(self, max_new_tokens: int) -> tuple[list[int], str]:
        """Token ids of the greedy answer, with the one that ended it, and its text."""
        backbone, config = self.model.backbone, self.model.config
        read = prefill(backbone, self.embeddings, self.segment, max_new_tokens=max_new_tokens)
        [said] = speak(
            backbone,
            self.tokenizer,
            read,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids_of(self.tokenizer, config),
            sampling=sampling_of(config),
        )
        return said


@torch.no_grad()
def prompted(
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase | None,
    video: Any,
    question: Question,
    opening: Opening | None = None,
    progress: Progress | None = None,
) -> Prompted:
    """Encode a video and a question; the arguments are those of `look_at`.

    Raises:
        ValueError: as `look_at`.
    """
    opening = opening or Opening()
    if opening.tiles:
        fail("look_at", "opening", "have no tiles", opening)
    if tokenizer is None:
        fail("look_at", "tokenizer", "be given", None)
    config, watch = model.config, StopWatch(model.device)
    if opening.stages is not None:
        model = model.with_stages(parse_stages(opening.stages, config))
    opened = Features(video, model) if is_feature_file(video) else video
    if isinstance(opened, Features):
        opening = opened.opening(opening)
    elif not isinstance(video, Video):
        opened = open_video(video, on_error=opening.on_error, progress=progress)
    with opened as source:
        opening = opening.of_model(config, source.is_image)
        assert opening.policy is not None
        indices = source.sample(opening.policy, start=opening.start, end=opening.end)
        duration = source.span(opening.start, opening.end, opening.policy).duration
        shape = (len(indices), duration, source.is_image)
        prompt = question_prompt(config, tokenizer, opening, question, *shape)
        check_tokenizer(config, prompt, stop_ids_of(tokenizer, config))
        options = (opening.frame_batch, watch, progress)
        if isinstance(source, Features):
            parts = [*source.encoded(model, *options)]
        else:
            parts = [*encode_video(model, source, indices, *options)]
    visual, times = (torch.cat([part[i] for part in parts]) for i in range(2))
    alone = len(indices) == 1
    openings = Labeller(config, tokenizer, picture=source.is_image, alone=alone).openings(times)
    prompt = prompt.labelled(openings)
    embeddings, segment = model.embed(
        _ids(model, prompt.before),
        runs_of(visual, openings) if openings else visual,
        _ids(model, prompt.after),
        [_ids(model, text) for text in prompt.between],
    )
    counts = (visual.shape[1],) * len(visual)
    # a single frame is an image
    seconds = token_seconds(times, counts, 1 if alone else config.clip_frames)
    return Prompted(model, tokenizer, embeddings, segment, seconds, counts, source.notes)


def look_at(
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase | None,
    video: Any,
    question: Question,
    answer: Sequence[int] = (),
    opening: Opening | None = None,
    looking: Looking | None = None,
    progress: Progress | None = None,
) -> Seen:
    """Read a video and a question in one pass, in which every layer has all rows and columns.

    Args:
        model, tokenizer: as of a session.
        video: a path, an array, a `Video` or a feature file, as `TimeViper.open` takes it.
        question: its prompt is that of asking.
        answer: token ids of the answer, such as `Answer.token_ids`.
        opening: how the video is read; its `chunk` is not used, and it has no tiles.
        looking: what to collect; None: `Looking()`.
        progress: called with ("frames", done, all).

    Raises:
        ValueError: as `TimeViper.open`, or an option that does not fit the prompt.
    """
    read = prompted(model, tokenizer, video, question, opening, progress)
    return read.look(answer, looking)


@torch.no_grad()
def look_asked(
    session: Session,
    question: Question,
    answer: Sequence[int] = (),
    looking: Looking | None = None,
) -> Seen:
    """Ask a session, and see what `look_behind` sees: Mamba-2 layers from the asking stage on, and
    attention layers, of which those below the asking stage have the question's rows alone.

    Args:
        session: of an exact video; a bounded stream has forgotten columns.
        question, answer, looking: as in `look_at`.

    Raises:
        ValueError: as `Session.ask`, or an option that does not fit the prompt.
    """
    model, ended = session.model, session.ended
    text = model.embed_text("question", _ids(model, session.prompt(question).after))
    said = model.embed_text("answer", _ids(model, answer))
    view = look_behind(ended, text, said, looking)
    tokens, footage = ended.segment.vision_present, session.footage
    return Seen(view, footage.token_seconds(tokens), tuple(footage.counts(tokens)))


def _ids(model: TimeViperNetwork, ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(ids)], dtype=torch.long, device=model.device)
