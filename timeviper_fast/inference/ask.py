"""Asking: a video file goes in, an answer comes out, with eight stops on the way.

decode -> resize -> vision -> merge -> project -> prompt -> prefill -> generate
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timeviper_fast.errors import ArgumentError
from timeviper_fast.inference.encode import Progress, encode_video, shape_of, token_seconds
from timeviper_fast.inference.generate import (
    Prefill,
    Sampling,
    StageCount,
    decode,
    prefill,
)
from timeviper_fast.inference.plan import check_window
from timeviper_fast.inference.request import check_request
from timeviper_fast.layout import Segment, tokens_before_layer
from timeviper_fast.stops import Stop, StopWatch
from timeviper_fast.text.prompt import (
    Prompt,
    build_prompt,
    stop_token_ids,
    video_sentence,
)
from timeviper_fast.video import Video, open_video
from timeviper_fast.video.sampling import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from timeviper_fast.timeviper import TimeViper

__all__ = ["Answer", "ask"]


@dataclass(frozen=True)
class Answer:
    """What `ask` returns.

    Attributes:
        text: the answer, without special tokens or the forced prefix.
        token_ids: every generated token, the one that ended the answer included.
        finish: "stop" when a stop token ended it, "length" at max_new_tokens.
        frame_seconds: time of every frame that was looked at, in seconds.
        kept_seconds: one time per vision token that the last layers still saw, in its order. Where
            clips of several frames are merged together, a token holds patches of its whole clip and
            the time only says where in the clip it lies.
        stages: vision tokens per compression stage.
        stops: time and size of the eight stops on the way.
        lost_frames: with `on_error="use"`, frames that the video should hold and does not (an
            estimate where its end is cut off), and frames that were asked for and did not decode.
    """

    text: str
    token_ids: tuple[int, ...]
    finish: str
    frame_seconds: tuple[float, ...]
    kept_seconds: tuple[float, ...]
    stages: tuple[StageCount, ...]
    stops: tuple[Stop, ...]
    lost_frames: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


@torch.no_grad()
def ask(
    model: TimeViper,
    video: Any,
    question: str | Sequence[dict[str, str]],
    *,
    policy: str | Policy = "fps:1",
    max_new_tokens: int = 256,
    sampling: Sampling | None = None,
    answer_prefix: str = "",
    mention_duration: bool = False,
    frame_batch: int | None = None,
    chunk: int | None = 8192,
    on_error: str = "raise",
    on_text: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Answer a question about a video.

    The video is decoded, encoded and forgotten in batches of frames, so an hour of it needs no
    more memory than a minute.

    Args:
        video: a file, a directory of images, an .npz or .npy file, a (frames, height, width, 3)
            uint8 tensor or array, or an opened `Video`.
        question: the question, or a conversation as [{"role": ..., "content": ...}, ...] that
            ends with the user.
        policy: which frames are looked at: "fps:1", "fps:2:max=256", "uniform:32", "upstream"
            or "videochat-flash".
        max_new_tokens: longest answer, in tokens.
        sampling: how tokens are drawn; greedy when None.
        answer_prefix: words that the answer is made to begin with.
        mention_duration: tell the model how long the video is and how many frames it sees.
        frame_batch: frames encoded at a time; 256 on CUDA, else 16.
        chunk: prompt tokens per pass through the LLM; the answer does not depend on it.
        on_error: "raise" on damaged video, or "use" what can be decoded (an opened `Video`
            knows already).
        on_text: called with each piece of the answer as it appears.
        progress: called with (what, done, total) during long work.

    Raises:
        ValueError: a bad argument, a video that cannot be read, or one too long for the model.
    """
    check_request(
        question,
        policy=policy,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        answer_prefix=answer_prefix,
        frame_batch=frame_batch,
        chunk=chunk,
        on_text=on_text,
        progress=progress,
    )
    if model.tokenizer is None:
        remedy = "set model.tokenizer, or put the tokenizer's files beside the weights"
        raise ArgumentError("ask", "model", "have a tokenizer", "None", remedy)
    watch = StopWatch(model.device)
    with watch.at("decode"):
        opened = video if isinstance(video, Video) else open_video(video, on_error=on_error)
    with opened as source:
        with watch.at("decode"):
            indices = source.sample(policy)
        with watch.at("prompt"):
            seconds = source.duration if mention_duration else None
            prompt = _write_prompt(model, question, len(indices), seconds, answer_prefix)
            _check_fits(model, prompt, len(indices), max_new_tokens)
        visual, times = encode_video(model, source, indices, frame_batch, watch, progress)
        lost = source.lost_frames
        if len(times) != len(indices):  # some could not be decoded: do not claim them
            prompt = _write_prompt(model, question, len(times), seconds, answer_prefix)
    read = _read(model, prompt, visual, max_new_tokens, chunk, watch)
    with watch.at("generate") as stop:
        ids, text = _speak(model, read, max_new_tokens, sampling, on_text, progress)
        stop.shape, stop.tokens = f"{len(ids)} tokens", str(len(ids))
    seconds_of = token_seconds(times, [len(frame) for frame in visual])
    return Answer(
        text=text,
        token_ids=tuple(ids),
        finish="stop" if ids[-1] in _stop_ids(model) else "length",
        frame_seconds=tuple(times.tolist()),
        kept_seconds=tuple(seconds_of[read.kept[0].cpu()].tolist()),
        stages=read.stages,
        stops=tuple(watch.rows()),
        lost_frames=lost,
    )


def _write_prompt(
    model: TimeViper,
    question: str | Sequence[dict[str, str]],
    frames: int,
    seconds: float | None,
    answer_prefix: str,
) -> Prompt:
    preface = "" if seconds is None else video_sentence(seconds, frames)
    template = model.config.template
    return build_prompt(
        _tokenizer(model), question, template=template, preface=preface, answer_prefix=answer_prefix
    )


def _check_fits(model: TimeViper, prompt: Prompt, frames: int, max_new_tokens: int) -> None:
    """Refuse a prompt that the model cannot read before an hour of video is encoded for it."""
    config = model.config
    highest = max(*prompt.before, *prompt.after, *_stop_ids(model))
    if highest >= config.backbone.vocab_size:
        raise ArgumentError(
            "ask",
            "the tokenizer",
            f"give ids below the model's vocabulary size ({config.backbone.vocab_size})",
            highest,
            "they belong to different models",
        )
    clip = config.projector.clip_frames
    vision = -(-frames // clip) * clip * config.tokens_per_frame
    segment = Segment(prompt.length(vision), prompt.span(vision))
    layers = config.backbone.num_hidden_layers
    lengths = tokens_before_layer((segment,), config.stages, layers)
    check_window(config.backbone, lengths, max_new_tokens)


def _read(
    model: TimeViper,
    prompt: Prompt,
    visual: Tensor,
    max_new_tokens: int,
    chunk: int | None,
    watch: StopWatch,
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
            max_new_tokens=max_new_tokens,
            chunk=chunk,
            watch=watch,
        )
        stop.shape = f"cache {read.cache.nbytes / 2**20:.1f} MiB"
        stop.tokens = f"{read.lengths[0]} -> {read.lengths[-1]}"
    return read


def _speak(
    model: TimeViper,
    read: Prefill,
    max_new_tokens: int,
    sampling: Sampling | None,
    on_text: Callable[[str], None] | None,
    progress: Progress | None,
) -> tuple[list[int], str]:
    """Decode to the end, passing text on as soon as it is whole words."""
    tokenizer = _tokenizer(model)
    streamer = _text_streamer(tokenizer, on_text) if on_text else None
    ids: list[int] = []
    for token in decode(
        model.backbone,
        read,
        max_new_tokens=max_new_tokens,
        stop_ids=_stop_ids(model),
        sampling=sampling,
    ):
        ids.append(int(token))
        if streamer is not None:
            streamer.put(token.cpu())
        if progress is not None:
            progress("tokens", len(ids), max_new_tokens)
    if streamer is not None:
        streamer.end()
    return ids, str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _stop_ids(model: TimeViper) -> set[int]:
    """What ends an answer: ids of the tokenizer, the chat template and the LLM's config."""
    ids = stop_token_ids(_tokenizer(model), model.config.template)
    return {*ids, *model.config.backbone.eos_token_ids}


def _tokenizer(model: TimeViper) -> PreTrainedTokenizerBase:
    assert model.tokenizer is not None  # ask() has checked
    return model.tokenizer


def _text_streamer(tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> Any:
    """A transformers streamer that hands finished pieces of text to `on_text`."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                on_text(text)

    return Streamer(tokenizer, skip_special_tokens=True)
