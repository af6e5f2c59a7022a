"""TimeViper: the network with its tokenizer, to load, save, ask and generate with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timeviper_fast.checkpoint.load import load_pretrained, load_tokenizer
from timeviper_fast.checkpoint.save import save_pretrained
from timeviper_fast.config import CompressionStage, TimeViperConfig
from timeviper_fast.embedded.models import TINY_NOTE, embedded_directory
from timeviper_fast.errors import expect_function, fail
from timeviper_fast.inference.answer import Answer
from timeviper_fast.inference.ask import answer
from timeviper_fast.inference.feature_file import save_features
from timeviper_fast.inference.generate import check_stop_ids
from timeviper_fast.inference.open import open_session
from timeviper_fast.inference.prompts import Generation, generate
from timeviper_fast.inference.request import (
    Opening,
    Request,
    Sampling,
    check_sampling,
    sampling_of,
)
from timeviper_fast.inference.session import Session
from timeviper_fast.inference.stream import Stream, open_stream
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stages import Stages, parse_stages
from timeviper_fast.stops import StopWatch
from timeviper_fast.text.messages import Message
from timeviper_fast.video import Progress
from timeviper_fast.video.sampling import Policy
from timeviper_fast.video.times import Time

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Generation", "TimeViper"]


class TimeViper(TimeViperNetwork):
    """Answers questions about videos.

    Args:
        config: what to build.
        tokenizer: any Hugging Face tokenizer; needed by `ask`, not by `generate`.

    Source: arXiv 2511.16595.
    """

    def __init__(
        self, config: TimeViperConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        super().__init__(config)
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        stages: Stages | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> TimeViper:
        """Load a model shard by shard: one that `save_pretrained` or `timeviper-fast convert`
        wrote, or VideoChat-Flash's released files as they are. No code of theirs runs.

        Args:
            path_or_hub_id: a local directory, a Hugging Face Hub id, or "timeviper-fast/tiny": the
                small trained model that comes with the package, always read from its files there.
            device: where the weights go; the first CUDA device, else the CPU.
            dtype: of the weights, or its name; bfloat16 on CUDA, else float32.
            stages: where vision tokens are dropped, instead of the checkpoint's stages: see `ask`.
            progress: called with (tensors read, all tensors).

        Raises:
            ValueError: no such model, device or dtype, stages or weights that do not fit.
        """
        expect_function("from_pretrained", progress=progress)
        device = _usable(device)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        chosen: tuple[CompressionStage, ...] | None = None

        def build(config: TimeViperConfig) -> TimeViper:
            nonlocal chosen
            # before any weights are read
            chosen = None if stages is None else parse_stages(stages, config)
            return cls(config)

        model, _, directory = load_pretrained(
            build, path_or_hub_id, device=device, dtype=dtype, progress=progress
        )
        if chosen is not None:
            model.set_stages(chosen)
        model.tokenizer = load_tokenizer(directory)
        if embedded_directory(path_or_hub_id) is not None:
            model.note = TINY_NOTE
        return model.eval()

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        overwrite: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write config, sharded safetensors and tokenizer, completely or not at all.

        Args:
            directory: new or empty, unless `overwrite` replaces a model of this format: its
                config, weights and tokenizer; other files stay.
            progress: called with (tensors written, all tensors).

        Raises:
            ValueError: a directory that must not be replaced, or cannot be written.
        """
        expect_function("save_pretrained", progress=progress)
        save_pretrained(
            self, self.config, self.tokenizer, directory, overwrite=overwrite, progress=progress
        )

    @torch.no_grad()
    def generate(
        self,
        before: Tensor | Sequence[Tensor],
        visual: Tensor | Sequence[Tensor] | None,
        after: Tensor | Sequence[Tensor],
        *,
        between: Sequence[Tensor] = (),
        max_new_tokens: int = 256,
        stop_ids: Collection[int] = (),
        sampling: Sampling | None = None,
        chunk: int | None = None,
    ) -> Generation:
        """Continue prompts given as tensors. Rows with the same text in front of the vision share
        what is read of it, and are decoded together.

        Args:
            before, visual, after, between: the prompts, as `embed` takes them; `encode` makes
                `visual`. Rows of unequal lengths: `before` and `after` as lists of (n,) ids.
            max_new_tokens: at most so many new tokens.
            stop_ids: ids that end a row.
            sampling: greedy when None, with the model's own repetition penalty. With a seed, each
                row is drawn as if it were alone.
            chunk: prompt tokens per pass through the layers; None reads all at once.

        Raises:
            ValueError: an argument breaks its rule, or a prompt is empty, does not fit the model's
                window, or makes the model's numbers infinite.
        """
        check_sampling(sampling)
        check_stop_ids(stop_ids, self.config.backbone)
        options = (max_new_tokens, stop_ids, sampling_of(self.config, sampling), chunk)
        return generate(self, before, visual, after, between, *options)

    def open(
        self,
        video: Any,
        *,
        policy: str | Policy | None = Opening.policy,
        start: Time | None = Opening.start,
        end: Time | None = Opening.end,
        lead: str = Opening.lead,
        frame_batch: int | None = Opening.frame_batch,
        chunk: int | None = Opening.chunk,
        on_error: str = Opening.on_error,
        stages: Stages | None = Opening.stages,
        tiles: bool = Opening.tiles,
        progress: Progress | None = None,
    ) -> Session:
        """Read a video once, to ask many questions of it.

        It is read up to the first stage that selects by attention: no question can change what the
        layers in front of it compute. `session.ask(question)` equals `model.ask(video, question)`.

        Args:
            lead: words that stand in front of the video in every question.
            video, policy, start, end, frame_batch, chunk, on_error, stages, tiles, progress: as in
                `ask`.

        Raises:
            ValueError: as `ask`.
        """
        expect_function("open", progress=progress)
        options = (policy, start, end, lead, frame_batch, chunk, on_error, stages, tiles)
        watch = StopWatch(self.device)
        opening = Opening(*options)
        return open_session(self, self.tokenizer, video, opening, watch, progress=progress)

    def stream(
        self,
        *,
        frames: int | None = None,
        fps: float = 1.0,
        lead: str = Opening.lead,
        chunk: int = 1024,
        frame_batch: int = 16,
        stages: Stages | None = None,
        bounded: str | None = None,
        even: bool = False,
    ) -> Stream:
        """A video that is still coming: push frames, ask between them.

        Args:
            frames: how many will come, if that is known: then every schedule of stages is exact,
                and questions wait until all have come.
            fps: frames per second of frames that are pushed without seconds.
            lead: words that stand in front of the video in every question.
            chunk: tokens per pass through the LLM. A question reads up to two unfinished blocks
                again, so a small one makes questions cheap and pushes somewhat dearer.
            frame_batch: frames encoded at a time.
            stages: as in `ask`.
            bounded: "window:2h" keeps keys, values and rows of the last two hours, "thin:2h" of as
                many frames, sparser with their age. Answers are then approximate.
            even: allow uniform stages to thin by a fixed rhythm where theirs is unknown until the
                end, and a content stage to choose in windows of 16 frames. Answers are then
                approximate.

        Raises:
            ValueError: a bad argument, or a stage that is exact at no number of frames unless it is
                announced.
        """
        opening = Opening(lead=lead, chunk=chunk, frame_batch=frame_batch, stages=stages)
        chosen = self.config.stages if stages is None else parse_stages(stages, self.config)
        options = {"frames": frames, "fps": fps, "bounded": bounded, "even": even}
        return open_stream(self, self.tokenizer, opening, chosen, **options)  # type: ignore[arg-type]

    def save_features(
        self,
        video: Any,
        path: str | Path,
        *,
        policy: str | Policy | None = Opening.policy,
        start: Time | None = Opening.start,
        end: Time | None = Opening.end,
        frame_batch: int | None = Opening.frame_batch,
        on_error: str = Opening.on_error,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Encode a video into a file of merged features, which `open` and `ask` take for the video.

        It is small, and fits every model with the same vision encoder and merging, whatever its
        projector, LLM and stages.

        Args:
            path: of the file, by custom with the suffix .features.
            overwrite: whether it replaces an existing file.
            video, policy, start, end, frame_batch, on_error, progress: as in `ask`.

        Raises:
            ValueError: a bad argument, or a path that must not be replaced.
            OSError: it cannot be written, or the disk is full; an old file is as before.
        """
        expect_function("save_features", progress=progress)
        opening = Opening(policy, start, end, frame_batch=frame_batch, on_error=on_error)
        save_features(self, video, opening, path, overwrite=overwrite, progress=progress)

    def load_session(self, path: str | Path) -> Session:
        """A session that `Session.save` wrote, of this model: equal weights, config, dtype and
        vocabulary. The device is free. On the CPU the tensors stay mapped from the file, which must
        not be written to meanwhile; replacing it is safe.

        Raises:
            ValueError: a file of another model, format or version, a damaged or a truncated one.
            OSError: there is no such file.
        """
        return Session.load(self, self.tokenizer, path)

    def load_stream(self, path: str | Path) -> Stream:
        """A stream that `Stream.save` wrote, to push further frames to: it goes on as if it had
        never ended, to the bit.

        Raises:
            ValueError: no file of a stream, one that is damaged, or one of another model,
                tokenizer or dtype.
            OSError: there is no such file.
        """
        return Stream.load(self, self.tokenizer, path)

    def ask(
        self,
        video: Any,
        question: str | Sequence[Message],
        *,
        policy: str | Policy | None = Request.policy,
        start: Time | None = Request.start,
        end: Time | None = Request.end,
        max_new_tokens: int = Request.max_new_tokens,
        sampling: Sampling | None = Request.sampling,
        answer_prefix: str = Request.answer_prefix,
        mention_duration: bool | None = Request.mention_duration,
        think: bool | None = Request.think,
        frame_batch: int | None = Request.frame_batch,
        chunk: int | None = Request.chunk,
        on_error: str = Request.on_error,
        stages: Stages | None = Request.stages,
        tiles: bool = Request.tiles,
        on_text: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """Answer a question about a video. For several questions `open` it once.

        The video is decoded, encoded and read by the LLM in batches of frames.

        Args:
            video: a file, an image, a directory of images, a pipe, `-` for standard input, an .npz
                or .npy file, a (frames, height, width, 3) uint8 tensor or array, a list of frames,
                the bytes of a file or a binary stream, or an opened `Video`; `open_video` has the
                details.
            question: the question, or a conversation as [{"role": ..., "content": ...}, ...] that
                ends with the user.
            policy: which frames are looked at: "fps:1", "fps:2:max=256", "uniform:32", "upstream"
                or "videochat-flash"; None is the model's own.
            start, end: look at the frames from `start` on and before `end` only: seconds, or text
                as "mm:ss" or "hh:mm:ss". All times of the answer are those of the whole video.
            max_new_tokens: longest answer, in tokens.
            sampling: how tokens are drawn; greedy when None, with the model's own repetition
                penalty.
            answer_prefix: words that the answer is made to begin with.
            mention_duration: tell the model how long the video (or its part from `start` to `end`)
                is and how many frames it sees; None is the model's own habit.
            think: whether a model that can think first does so, which is then `Answer.thinking`;
                allow it more `max_new_tokens`. None: as `/think` or `/no_think` in the question
                says, else not.
            frame_batch: frames encoded at a time; None: up to 256 by a GPU's memory, else 16.
            chunk: prompt tokens per pass through the LLM; None: 8192, or as many as a GPU's memory
                allows. Other values change answers by rounding alone.
            on_error: "raise" on damaged video, or "use" what can be decoded (an opened `Video`
                knows already).
            stages: where the LLM drops vision tokens, instead of the model's own stages: text as
                "uniform:4:0.75,attention:18:0.25:normed" (blocks of the LLM, fractions of all
                vision tokens that stay, and the stream that attention scores), in front of it
                "content:0.7" (remove that fraction before the LLM: tokens that differ least from
                the frame before), a rule
                ("uniform0_attention", "pyramiddrop"), "none", or a tuple of `CompressionStage`,
                which count our layers.
            tiles: show a single image whole and cut into tiles, up to 6 x 6, for small details.
            on_text: called with each piece of the answer as it appears.
            progress: called with (what, done, total) during long work.

        Raises:
            ValueError: a bad argument, a video that cannot be read, or one too long for the model.
        """
        request = Request(
            question,
            policy=policy,
            start=start,
            end=end,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            answer_prefix=answer_prefix,
            mention_duration=mention_duration,
            think=think,
            frame_batch=frame_batch,
            chunk=chunk,
            on_error=on_error,
            stages=stages,
            tiles=tiles,
        )
        return answer(self, self.tokenizer, video, request, on_text=on_text, progress=progress)


def _usable(device: torch.device | str | None) -> torch.device:
    """The device that was asked for, or the best there is.

    Raises:
        ValueError: there is no such device here, or none that the model runs on.
    """
    cuda = torch.cuda.is_available()
    if device is None:
        return torch.device("cuda" if cuda else "cpu")
    rule = "be cpu, cuda or cuda:N"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        fail("", "device", rule, str(device))
    if str(found) != "cpu" and found.type != "cuda":
        fail("", "device", rule, str(device))
    if found.type == "cuda" and (found.index or 0) >= (torch.cuda.device_count() if cuda else 0):
        what = f"{torch.cuda.device_count()} CUDA devices" if cuda else "no CUDA device"
        fail("", "device", f"be one that is here ({what})", str(device))
    return found
