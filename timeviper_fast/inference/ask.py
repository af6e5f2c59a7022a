"""From a video and a request to an answer, in eight timed stops.

decode -> resize -> vision -> merge -> project -> prompt -> prefill -> generate
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timeviper_fast.config import TimeViperConfig
from timeviper_fast.errors import expect_function, fail
from timeviper_fast.inference.encode import encode_video, filling_note, shape_of, token_seconds
from timeviper_fast.inference.fit import check_fits
from timeviper_fast.inference.generate import Prefill, StageCount, decode, prefill
from timeviper_fast.inference.request import Request
from timeviper_fast.inference.tiles import best_grid, cut_tiles, encode_tiles
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stages import parse_stages
from timeviper_fast.stops import Stop, StopWatch
from timeviper_fast.text.prompt import Prompt, build_prompt, stop_token_ids, vision_preface
from timeviper_fast.video import Progress, Video, open_video

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answer", "answer", "stop_ids_of"]


@dataclass(frozen=True)
class Answer:
    """What `ask` returns.

    Attributes:
        text: the answer, without special tokens or the forced prefix.
        token_ids: every generated token, the one that ended the answer included.
        finish: "stop" when a stop token ended it, "length" at max_new_tokens.
        frame_seconds: time of every frame that was looked at, in seconds.
        kept_seconds: one time per vision token that the last layers still saw, in its order. Where
            clips of several frames are encoded or merged together, a token holds patches of its
            whole clip, and its time is that of the clip's middle frame.
        stages: vision tokens per compression stage.
        stops: time and size of the eight stops on the way.
        lost_frames: with `on_error="use"`, frames that the video should hold and does not (an
            estimate where its end is cut off), and frames that were asked for and did not decode.
        notes: what was mended to read the video, in sentences, such as flawed time stamps, and
            how many copies of the last frame fill the last clip; and that no vision token was left.
        model_note: what the model can answer, if it says so: the embedded model answers about the
            synthetic world alone. "" for other models.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


@torch.no_grad()
def answer(
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase | None,
    video: Any,
    request: Request,
    *,
    on_text: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Answer a request about a video; `TimeViper.ask` says what each argument may be.

    Raises:
        ValueError: no tokenizer, a video that cannot be read, or one too long for the model.
    """
    expect_function("ask", on_text=on_text, progress=progress)
    if tokenizer is None:
        remedy = "set model.tokenizer, or put the tokenizer's files beside the weights"
        fail("ask", "model", "have a tokenizer", None, remedy)
    stop_ids, stages = stop_ids_of(tokenizer, model.config), None
    if request.stages is not None:
        stages = parse_stages(request.stages, model.config)
    watch = StopWatch(model.device)
    with watch.at("decode"):
        opened = video
        if not isinstance(video, Video):
            opened = open_video(video, on_error=request.on_error, progress=progress)
    with opened as source, model.using_stages(stages):
        asked = request.of_model(model.config, source.is_image)
        return _answer(model, tokenizer, source, asked, stop_ids, watch, on_text, progress)


def _answer(
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase,
    source: Video,
    request: Request,
    stop_ids: set[int],
    watch: StopWatch,
    on_text: Callable[[str], None] | None,
    progress: Progress | None,
) -> Answer:
    """Answer a request in which nothing is left to the model."""
    assert request.policy is not None
    with watch.at("decode"):
        indices = source.sample(request.policy, start=request.start, end=request.end)
        duration = source.span(request.start, request.end, request.policy).duration
    with watch.at("prompt"):
        prompt = _write_prompt(tokenizer, model.config, request, duration, len(indices))
        _check_tokenizer(model.config, prompt, stop_ids)
        size = model.config.vision.image_size
        grid = best_grid(*source.size, size) if request.tiles else (0, 0)
        check_fits(model.config, prompt, len(indices), request, 1 + prod(grid))
    if request.tiles:
        visual, times = _encode_tiles(model, source, grid, watch)
    else:
        batches = encode_video(model, source, indices, request.frame_batch, watch, progress)
        visual, times = (torch.cat(parts) for parts in zip(*batches))
    lost = source.lost_frames
    if len(times) != len(indices) and request.mention_duration:
        # Some frames did not decode. Write the prompt again, with the number that did.
        prompt = _write_prompt(tokenizer, model.config, request, duration, len(times))
    read = _read(model, prompt, visual, request, watch, progress)
    with watch.at("generate") as stop:
        ids, text = _speak(model, tokenizer, read, request, stop_ids, on_text, progress)
        stop.shape, stop.tokens = f"{len(ids)} tokens", str(len(ids))
    # a single frame is an image
    clip = model.config.clip_frames if len(indices) > 1 else 1
    repeated = int((times == times[-1]).sum()) - 1
    seconds_of = token_seconds(times, [len(frame) for frame in visual], clip)
    return Answer(
        text=text,
        token_ids=tuple(ids),
        finish="stop" if ids[-1] in stop_ids else "length",
        frame_seconds=tuple(times.tolist()),
        kept_seconds=tuple(seconds_of[read.kept[0].cpu()].tolist()),
        stages=read.stages,
        stops=tuple(watch.rows()),
        lost_frames=lost,
        notes=(
            *source.notes,
            *filling_note(len(times), clip, repeated),
            *_nothing_left(len(times), read.kept.shape[1]),
        ),
        model_note=model.note,
    )


def _nothing_left(frames: int, kept: int) -> tuple[str, ...]:
    """A sentence that says that the stages dropped every vision token; () if one is left."""
    if kept:
        return ()
    few = "1 frame is" if frames == 1 else f"{frames} frames are"
    return (
        f"No vision token was left: {few} too few for these stages; "
        '--stages none (stages="none" in Python) keeps all.',
    )


def _encode_tiles(
    model: TimeViperNetwork, source: Video, grid: tuple[int, int], watch: StopWatch
) -> tuple[Tensor, Tensor]:
    """Visual tokens (1, n, d_model) of a single image and its tiles, and its second."""
    with watch.at("decode"):
        frame = next(source.frames([0], 1))
    with watch.at("vision") as stop:
        crops = cut_tiles(frame.rgb[0], model.config.vision.image_size, *grid)
        visual = encode_tiles(model, crops, *grid)
        stop.shape, stop.tokens = f"{len(crops)} images", str(visual.shape[1])
    return visual, frame.seconds


def stop_ids_of(tokenizer: PreTrainedTokenizerBase, config: TimeViperConfig) -> set[int]:
    """Ids that end an answer: of the tokenizer, the chat template and the LLM's config."""
    return {*stop_token_ids(tokenizer, config.template), *config.backbone.eos_token_ids}


def _write_prompt(
    tokenizer: PreTrainedTokenizerBase,
    config: TimeViperConfig,
    request: Request,
    duration: float,
    frames: int,
) -> Prompt:
    return build_prompt(
        tokenizer,
        request.question,
        template=config.template,
        preface=vision_preface(
            config.template, duration if request.mention_duration else None, frames
        ),
        answer_prefix=request.answer_prefix,
    )


def _check_tokenizer(config: TimeViperConfig, prompt: Prompt, stop_ids: set[int]) -> None:
    highest = max(*prompt.before, *prompt.after, *stop_ids)
    if highest >= config.backbone.vocab_size:
        rule = f"give ids below the model's vocabulary size ({config.backbone.vocab_size})"
        fail("ask", "the tokenizer", rule, highest, "they belong to different models")


def _read(
    model: TimeViperNetwork,
    prompt: Prompt,
    visual: Tensor,
    request: Request,
    watch: StopWatch,
    progress: Progress | None,
) -> Prefill:
    """Put text and vision together and run the LLM over them."""
    with watch.at("prompt") as stop:
        before, after = (
            torch.tensor([ids], dtype=torch.long, device=model.device)
            for ids in (prompt.before, prompt.after)
        )
        embeddings, segment = model.embed(before, visual, after)
        stop.shape, stop.tokens = shape_of(embeddings), str(segment.length)
    with watch.at("prefill") as stop:
        read = prefill(
            model.backbone,
            embeddings,
            segment,
            max_new_tokens=request.max_new_tokens,
            chunk=request.chunk,
            watch=watch,
            progress=progress,
        )
        stop.shape = f"cache {read.cache.nbytes / 2**20:.1f} MiB"
        stop.tokens = f"{read.lengths[0]} -> {read.lengths[-1]}"
    return read


def _speak(
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase,
    read: Prefill,
    request: Request,
    stop_ids: set[int],
    on_text: Callable[[str], None] | None,
    progress: Progress | None,
) -> tuple[list[int], str]:
    """Decode to the end, passing text on as soon as it is whole words."""
    streamer = _text_streamer(tokenizer, on_text) if on_text else None
    ids: list[int] = []
    for token in decode(
        model.backbone,
        read,
        max_new_tokens=request.max_new_tokens,
        stop_ids=stop_ids,
        sampling=request.sampling,
    ):
        ids.append(int(token))
        if streamer is not None:
            streamer.put(token.cpu())
        if progress is not None:
            progress("tokens", len(ids), request.max_new_tokens)
    if streamer is not None:
        streamer.end()
    return ids, str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _text_streamer(tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> Any:
    """A transformers streamer that hands finished pieces of text to `on_text`."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                on_text(text)

    return Streamer(tokenizer, skip_special_tokens=True)
