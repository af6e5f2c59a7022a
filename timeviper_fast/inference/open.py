"""From a video to a session: decode, resize, vision, merge, project, the LLM's lower layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import fail
from timeviper_fast.inference.answer import check_tokenizer, stop_ids_of
from timeviper_fast.inference.encode import Encoded, encode_video
from timeviper_fast.inference.ended import Ended
from timeviper_fast.inference.feature_file import Features, is_feature_file
from timeviper_fast.inference.fit import check_fits
from timeviper_fast.inference.footage import Footage, bytes_of
from timeviper_fast.inference.labelled import Labeller, push_frames
from timeviper_fast.inference.prefix import Prefix
from timeviper_fast.inference.request import Opening, Question, question_prompt
from timeviper_fast.inference.room import explained, planned
from timeviper_fast.inference.session import Session
from timeviper_fast.inference.tiles import best_grid, cut_tiles, encode_tiles
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stages import parse_stages
from timeviper_fast.stops import StopWatch
from timeviper_fast.video import Progress, Video, open_video

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["open_session"]

# the shortest question there is: what does not fit with it fits with no question
_ANY = Question("?", max_new_tokens=1)


@torch.no_grad()
def open_session(
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase | None,
    video: Any,
    opening: Opening,
    watch: StopWatch,
    *,
    first: Question = _ANY,
    progress: Progress | None = None,
) -> Session:
    """Read a video below the asking stage; `TimeViper.open` says what each argument may be.

    Args:
        watch: gets the times and sizes of the stops on the way.
        first: a question that must fit with the video, which is known before it is decoded.

    Raises:
        ValueError: no tokenizer, a video that cannot be read, or one too long for the model.
    """
    if tokenizer is None:
        remedy = "set model.tokenizer, or put the tokenizer's files beside the weights"
        fail("ask", "model", "have a tokenizer", None, remedy)
    stages = model.config.stages
    if opening.stages is not None:
        stages = parse_stages(opening.stages, model.config)
    with watch.at("decode"):
        opened = Features(video, model) if is_feature_file(video) else video
        if isinstance(opened, Features):
            opening = opened.opening(opening)
        elif not isinstance(video, Video):
            opened = open_video(video, on_error=opening.on_error, progress=progress)
    with opened as source:
        opening = opening.of_model(model.config, source.is_image)
        reader = _Opener(model, tokenizer, source, opening, stages, watch, progress)
        return reader.session(first)


class _Opener:
    """Reads one video with options in which nothing is left to the model."""

    def __init__(
        self,
        model: TimeViperNetwork,
        tokenizer: PreTrainedTokenizerBase,
        source: Video | Features,
        opening: Opening,
        stages: tuple[CompressionStage, ...],
        watch: StopWatch,
        progress: Progress | None,
    ) -> None:
        self.given, self.model = model, model.with_stages(stages).seeing(*source.size)
        self.tokenizer, self.source = tokenizer, source
        self.opening, self.stages, self.watch, self.progress = opening, stages, watch, progress

    def session(self, first: Question) -> Session:
        opening, source, config = self.opening, self.source, self.model.config
        assert opening.policy is not None
        with self.watch.at("decode"):
            indices = source.sample(opening.policy, start=opening.start, end=opening.end)
            duration = source.span(opening.start, opening.end, opening.policy).duration
        with self.watch.at("prompt"):
            shape = (len(indices), duration, source.is_image)
            asked = question_prompt(config, self.tokenizer, opening, first, *shape)
            self.labels = Labeller(
                config, self.tokenizer, picture=source.is_image, alone=len(indices) == 1
            )
            prompt = asked.labelled(self.labels.openings(source.seconds[indices]))
            text = prompt.length(0) - len(prompt.after)
            check_tokenizer(config, prompt, stop_ids_of(self.tokenizer, config))
            grid = (0, 0)
            if opening.tiles and isinstance(source, Video):
                grid = best_grid(*source.size, config.vision.image_size)
            images = 1 + prod(grid)
            policy = opening.policy
            check_fits(config, prompt, len(indices), policy, first.max_new_tokens, images)
            # each tile is a picture of its own
            lengths = len(indices) * images, text, len(prompt.after)
            opening, store = planned(self.model, opening, *lengths, first.max_new_tokens)
            self.opening = opening
        if opening.tiles:
            parts, tokens = iter([self._tiles(grid)]), None
        else:
            options = (opening.frame_batch, self.watch, self.progress)
            if isinstance(source, Features):
                parts = source.encoded(self.model, *options)
            else:
                parts = encode_video(self.model, source, indices, *options)
            tokens = config.visual_tokens(len(indices))
        each = config.frame_tokens(len(indices)) * images
        with explained(self.model, "reading the video", len(indices), 1, first.max_new_tokens):
            ended, times, per_frame = self._read(asked.before, text, parts, tokens, each, store)
        footage = Footage(
            name=source.name,
            seconds=times,
            duration=duration,
            tokens_per_frame=per_frame,
            # a single frame is an image
            clip=config.clip_frames if len(indices) > 1 else 1,
            is_image=source.is_image,
            lost_frames=source.lost_frames,
            notes=source.notes,
            repeated=int((times == times[-1]).sum()) - 1,
            size=source.bytes if isinstance(source, Features) else bytes_of(source.name),
            tubelet=config.vision.frames_per_patch if len(indices) > 1 else 1,
        )
        return Session(
            self.given,
            self.tokenizer,
            ended,
            before=asked.before,
            footage=footage,
            opening=opening,
            stages=self.stages,
            stops=tuple(self.watch.rows()),
        )

    def _read(
        self,
        before: list[int],
        text: int,
        parts: Iterator[Encoded],
        tokens: int | None,
        each: int,
        store: torch.device,
    ) -> tuple[Ended, Tensor, int]:
        """The video below the asking stage, its frames' seconds, and vision tokens of a frame.

        `before` are the token ids in front of it; `text` counts them and those of all labels;
        `each` are the vision tokens of a frame, or of a clip that is merged as one.
        """
        if tokens is None or self.opening.on_error == "use":
            # frames may be lost, so the number of tokens is known at the end only
            parts = iter(whole := list(parts))
            tokens = sum(part.tokens.shape[:2].numel() for part in whole)
            seconds = torch.cat([part.seconds for part in whole])
            text = len(before) + sum(map(len, self.labels.openings(seconds)))
        inside = text - len(before)
        span = VisualSpan(len(before), inside + tokens)
        front = Segment(text + tokens, span, text_inside=inside, frame_tokens=each)
        options = {"chunk": self.opening.chunk, "watch": self.watch, "store": store}
        prefix = Prefix(self.model.backbone, expected=front, **options)  # type: ignore[arg-type]
        ids = torch.tensor([before], dtype=torch.long, device=self.model.device)
        prefix.push(self.model.backbone.embeddings(ids), vision=False)
        times, per_frame, done = list[Tensor](), 0, 0
        for part in parts:
            openings = self.labels.openings(part.seconds, done)
            times.append(part.seconds)
            per_frame, done = part.tokens.shape[1], done + len(part.seconds)
            with self.watch.at("prefill"):
                push_frames(prefix, self.model.backbone.embeddings, part, openings)
        with self.watch.at("prefill"):
            prefix.finish()
        return Ended.of(prefix), torch.cat(times), per_frame

    def _tiles(self, grid: tuple[int, int]) -> Encoded:
        """A single image and its tiles, as one frame."""
        assert isinstance(self.source, Video)
        with self.watch.at("decode"), closing(self.source.frames([0], 1)) as frames:  # type: ignore[type-var]
            frame = next(frames)
        with self.watch.at("vision") as stop:
            crops = cut_tiles(frame.rgb[0], self.model.config.vision.image_size, *grid)
            visual = encode_tiles(self.model, crops, *grid)
            stop.shape, stop.tokens = f"{len(crops)} images", str(visual.shape[1])
        return Encoded(visual, frame.seconds)
