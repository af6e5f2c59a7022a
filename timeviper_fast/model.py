"""TimeViper: vision transformer, projector and hybrid LLM, from a video file to an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from timeviper_fast import checkpoint
from timeviper_fast.backbone import HybridBackbone
from timeviper_fast.config import Segment, TimeViperConfig, VisualSpan, tokens_before_layer
from timeviper_fast.generate import Prefill, Sampling, check_window, decode, prefill
from timeviper_fast.preprocess import resize_normalize
from timeviper_fast.projector import Projector
from timeviper_fast.prompt import Prompt, build_prompt, stop_token_ids, video_sentence
from timeviper_fast.stops import Stop, StopWatch
from timeviper_fast.video import Frames, Video, open_video
from timeviper_fast.vision import VisionTransformer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answer", "Generation", "StageCount", "TimeViper"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class StageCount:
    """Vision tokens before and after the compression stage in front of `layer`."""

    layer: int
    before: int
    after: int


@dataclass(frozen=True)
class Generation:
    """What `generate` returns.

    Attributes:
        token_ids: (batch, n) int64 new tokens; a row that ended early repeats its stop id.
        stages: vision tokens per compression stage.
        kept: (batch, n) int64, which of the original vision tokens the last layers still saw.
    """

    token_ids: Tensor
    stages: tuple[StageCount, ...]
    kept: Tensor


@dataclass(frozen=True)
class Answer:
    """What `ask` returns.

    Attributes:
        text: the answer, without special tokens or the forced prefix.
        token_ids: every generated token, the one that ended the answer included.
        finish: "stop" when a stop token ended it, "length" at max_new_tokens.
        frame_seconds: time of every sampled frame, in seconds.
        kept_seconds: one time per vision token that the last layers still saw, in its order.
        stages: vision tokens per compression stage.
        stops: time and size of the eight stops on the way.
        lost_frames: frames that could not be decoded (with `on_error="use"`).
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


class TimeViper(nn.Module):
    """Answers questions about videos.

    Args:
        config: what to build.
        tokenizer: any Hugging Face tokenizer; needed by `ask`, not by `generate`.

    Source: arXiv 2511.16595.
    """

    def __init__(
        self, config: TimeViperConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.vision = VisionTransformer(config.vision)
        sizes = (config.vision.hidden_size, config.backbone.hidden_size)
        self.projector = Projector(config.projector, *sizes)
        self.backbone = HybridBackbone(config.backbone, config.stages)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> TimeViper:
        """Load a model that `save_pretrained` or `timeviper-fast convert` wrote, shard by shard.

        Args:
            path_or_hub_id: a local directory, or a Hugging Face Hub id.
            device: where the weights go; the first CUDA device, else the CPU.
            dtype: of the weights; bfloat16 on CUDA, else float32.
            progress: called with (tensors read, all tensors).

        Raises:
            ValueError: no such model, or weights that do not fit; every key is listed at once.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        model, _, directory = checkpoint.load_pretrained(
            cls, path_or_hub_id, device=device, dtype=dtype, progress=progress
        )
        model.tokenizer = checkpoint.load_tokenizer(directory)
        return model.eval()

    def save_pretrained(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write config, sharded safetensors and tokenizer; nothing is left half-written."""
        checkpoint.save_pretrained(
            self, self.config, self.tokenizer, directory, overwrite=overwrite
        )

    @property
    def device(self) -> torch.device:
        return self.backbone.embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.embeddings.weight.dtype

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised frames (frames, 3, size, size) -> visual tokens (frames, n, d_model)."""
        return self.projector(self.vision(pixels))

    def embed(self, before: Tensor, visual: Tensor | None, after: Tensor) -> tuple[Tensor, Segment]:
        """Text and visual tokens as one sequence, and where the vision lies in it.

        Args:
            before, after: (batch, n) token ids in front of and behind the vision; n may be 0.
            visual: (frames, n, d_model), seen by every row; None for a text-only prompt.

        Returns:
            (batch, seqlen, d_model) embeddings and their segment.
        """
        pieces = [self.backbone.embeddings(before)]
        count = 0
        if visual is not None:
            count = visual.shape[0] * visual.shape[1]
            pieces.append(visual.flatten(0, 1).expand(len(before), -1, -1))
        pieces.append(self.backbone.embeddings(after))
        embeddings = torch.cat(pieces, dim=1)
        return embeddings, Segment(embeddings.shape[1], VisualSpan(before.shape[1], count))

    @torch.no_grad()
    def generate(
        self,
        before: Tensor,
        visual: Tensor | None,
        after: Tensor,
        *,
        max_new_tokens: int = 256,
        stop_ids: Sequence[int] = (),
        sampling: Sampling | None = None,
        chunk: int | None = None,
    ) -> Generation:
        """Continue a prompt given as tensors.

        Args:
            before, visual, after: the prompt, as `embed` takes it; `encode` makes `visual`.
            max_new_tokens: at most so many new tokens.
            stop_ids: ids that end a row.
            sampling: greedy when None.
            chunk: prompt tokens per pass through the layers; None reads all at once.

        Raises:
            ValueError: an empty prompt, or one that does not fit the model's window.
        """
        embeddings, segment = self.embed(before, visual, after)
        read = prefill(
            self.backbone, embeddings, segment, max_new_tokens=max_new_tokens, chunk=chunk
        )
        tokens = list(
            decode(
                self.backbone,
                read,
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                sampling=sampling,
            )
        )
        stages, kept = _survivors(read, segment, self.device)
        return Generation(torch.stack(tokens, dim=1), stages, kept.expand(len(before), -1))

    @torch.no_grad()
    def ask(
        self,
        video: Any,
        question: str | Sequence[dict[str, str]],
        *,
        policy: str = "fps:1",
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
        if self.tokenizer is None:
            raise ValueError("ask: the model must have a tokenizer, got None")
        _expect_positive("max_new_tokens", max_new_tokens, "tokens")
        _expect_positive("chunk", chunk, "tokens")
        _expect_positive("frame_batch", frame_batch, "frames")
        watch = StopWatch(self.device)
        opened = video if isinstance(video, Video) else open_video(video, on_error=on_error)
        with opened as source:
            with watch.at("decode"):
                indices = source.sample(policy)
            with watch.at("prompt") as stop:
                frames = len(indices)
                preface = video_sentence(source.duration, frames) if mention_duration else ""
                prompt = build_prompt(
                    self.tokenizer,
                    question,
                    template=self.config.template,
                    preface=preface,
                    answer_prefix=answer_prefix,
                )
                self._check_fits(prompt, frames, max_new_tokens)
            visual, seconds = self._encode_video(source, indices, frame_batch, watch, progress)
            lost = source.lost_frames
        with watch.at("prompt") as stop:
            before, after = (
                torch.tensor([ids], dtype=torch.long, device=self.device)
                for ids in (prompt.before, prompt.after)
            )
            embeddings, segment = self.embed(before, visual, after)
            stop.shape, stop.tokens = _shape(embeddings), str(segment.length)
        with watch.at("prefill") as stop:
            read = prefill(
                self.backbone,
                embeddings,
                segment,
                max_new_tokens=max_new_tokens,
                chunk=chunk,
                watch=watch,
            )
            stop.shape = f"cache {read.cache.nbytes / 2**20:.1f} MiB"
            stop.tokens = f"{read.lengths[0]} -> {read.lengths[-1]}"
        with watch.at("generate") as stop:
            ids, text = self._speak(read, max_new_tokens, sampling, on_text, progress)
            stop.shape, stop.tokens = f"{len(ids)} tokens", str(len(ids))
        stages, kept = _survivors(read, segment, self.device)
        ended = bool(ids) and ids[-1] in stop_token_ids(self.tokenizer, self.config.template)
        per_frame = self.config.tokens_per_frame
        return Answer(
            text=text,
            token_ids=tuple(ids),
            finish="stop" if ended else "length",
            frame_seconds=tuple(seconds.tolist()),
            kept_seconds=tuple(seconds[kept[0].cpu() // per_frame].tolist()),
            stages=stages,
            stops=tuple(watch.rows()),
            lost_frames=lost,
        )

    def _check_fits(self, prompt: Prompt, frames: int, max_new_tokens: int) -> None:
        """Refuse a prompt that is too long before an hour of video is encoded for it."""
        clip = self.config.projector.clip_frames
        vision = -(-frames // clip) * clip * self.config.tokens_per_frame
        segment = Segment(prompt.length(vision), prompt.span(vision))
        backbone = self.config.backbone
        lengths = tokens_before_layer((segment,), self.config.stages, backbone.num_hidden_layers)
        check_window(backbone, lengths, max_new_tokens)

    def _encode_video(
        self,
        source: Video,
        indices: Tensor,
        frame_batch: int | None,
        watch: StopWatch,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Visual tokens (frames, n, d_model) of the frames at `indices`, and their seconds."""
        vision, clip = self.config.vision, self.config.projector.clip_frames
        batch = frame_batch or (256 if self.device.type == "cuda" else 16)
        batch = -(-batch // clip) * clip
        tokens, seconds, done = [], [], 0
        batches = iter(source.frames(indices, batch))
        while True:
            with watch.at("decode") as stop:
                frames = next(batches, None)
            if frames is None:
                break
            frames = _whole_clips(frames, clip)
            stop.shape = f"{len(indices)} x {_shape(frames.rgb[0])}"
            with watch.at("resize") as stop:
                pixels = resize_normalize(
                    frames.rgb.to(self.device),
                    vision.image_size,
                    vision.image_mean,
                    vision.image_std,
                    vision.resize,
                ).to(self.dtype)
                stop.shape = f"{len(indices)} x {_shape(pixels[0])}"
            with watch.at("vision") as stop:
                features = self.vision(pixels)
                _note(stop, features, len(indices))
            with watch.at("merge") as stop:
                merged = self.projector.merge(features)
                _note(stop, merged, len(indices))
            with watch.at("project") as stop:
                tokens.append(self.projector.project(merged))
                _note(stop, tokens[-1], len(indices))
            seconds.append(frames.seconds)
            done += len(pixels)
            if progress is not None:
                progress("frames", done, len(indices))
        return torch.cat(tokens), torch.cat(seconds)

    def _speak(
        self,
        read: Prefill,
        max_new_tokens: int,
        sampling: Sampling | None,
        on_text: Callable[[str], None] | None,
        progress: Progress | None,
    ) -> tuple[list[int], str]:
        """Decode to the end, passing text on as soon as it is whole words."""
        tokenizer = self.tokenizer
        assert tokenizer is not None  # ask() has checked
        stop_ids = stop_token_ids(tokenizer, self.config.template)
        streamer = _text_streamer(tokenizer, on_text) if on_text else None
        ids: list[int] = []
        for token in decode(
            self.backbone,
            read,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
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


def _survivors(
    read: Prefill, segment: Segment, device: torch.device
) -> tuple[tuple[StageCount, ...], Tensor]:
    """Counts per stage, and which original vision tokens (batch, n) outlived the last."""
    kept = torch.arange(segment.span.length, device=device).unsqueeze(0)
    counts = []
    for [record] in read.records:
        kept = kept.expand(len(record.kept), -1).gather(1, record.kept)
        counts.append(StageCount(record.layer, record.tokens_before, record.tokens_after))
    return tuple(counts), kept


def _whole_clips(frames: Frames, clip: int) -> Frames:
    """Repeat the last frame until the frames fill whole clips."""
    missing = -len(frames.seconds) % clip
    if not missing:
        return frames
    index = torch.arange(len(frames.seconds) + missing).clamp_max(len(frames.seconds) - 1)
    return replace(frames, rgb=frames.rgb[index], seconds=frames.seconds[index])


def _expect_positive(name: str, value: int | None, unit: str) -> None:
    if value is not None and value < 1:
        raise ValueError(f"ask: {name} must be a positive number of {unit}, got {value}")


def _shape(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))


def _note(stop: Stop, batch: Tensor, frames: int) -> None:
    """Sizes of one stop over the whole video, read off one batch of it."""
    stop.shape = f"{frames} x {_shape(batch[0])}"
    stop.tokens = str(frames * batch.shape[1])


def _text_streamer(tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> Any:
    """A transformers streamer that hands finished pieces of text to `on_text`."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                on_text(text)

    return Streamer(tokenizer, skip_special_tokens=True)
