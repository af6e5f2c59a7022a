"""The network: vision encoder, projector and hybrid LLM in one module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from timeviper_fast.config import CompressionStage, TimeViperConfig
from timeviper_fast.errors import ArgumentError, fail, is_integer
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.model.projector import Projector
from timeviper_fast.model.vision.build import build_encoder

__all__ = ["TimeViperNetwork", "shown"]


class TimeViperNetwork(nn.Module):
    """Vision encoder, projector and LLM; `embed` joins visual tokens and text into one sequence.

    Args:
        config: what to build.

    Attributes:
        note: a sentence on what the model can answer, which every answer carries; "" for none.

    Source: arXiv 2511.16595.
    """

    note: str = ""

    def __init__(self, config: TimeViperConfig) -> None:
        super().__init__()
        if not isinstance(config, TimeViperConfig):
            remedy = "preset() makes one, and TimeViper.from_pretrained() loads a model"
            fail("TimeViper", "config", "be a TimeViperConfig", config, remedy)
        self.config = config
        self.vision = build_encoder(config.vision)
        sizes = (config.vision.hidden_size, config.backbone.hidden_size)
        self.projector = Projector(config.projector, *sizes)
        self.backbone = HybridBackbone(config.backbone, config.stages)

    @property
    def device(self) -> torch.device:
        return self.backbone.embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.embeddings.weight.dtype

    def set_stages(self, stages: tuple[CompressionStage, ...]) -> None:
        """Replace the compression stages; rules and errors are those of `HybridBackbone`."""
        self.backbone.set_stages(stages)
        self.config = replace(self.config, stages=stages)

    def with_stages(self, stages: tuple[CompressionStage, ...]) -> TimeViperNetwork:
        """This network with other compression stages, on the same weights; this one is not touched,
        and `set_stages` of this one does not reach the other.

        Raises:
            ValueError: as `set_stages`.
        """
        other = copy.copy(self)
        other._modules = {**self._modules, "backbone": self.backbone.with_stages(stages)}
        other.config = replace(self.config, stages=stages)
        return other

    def seeing(self, height: int, width: int) -> TimeViperNetwork:
        """This network for frames of that size in pixels, on the same weights; itself where all
        frames become a square. `config` then counts their patches and tokens."""
        config = self.config.seeing(height, width)
        if config is self.config:
            return self
        other = copy.copy(self)
        other.config = config
        return other

    def set_image_size(self, size: int) -> None:
        """Take pictures of another size, in pixels per side; position embeddings are interpolated.

        Raises:
            ValueError: a size that the config does not allow.
        """
        # the config is checked first: an error leaves the model as it was
        config = replace(self.config, vision=replace(self.config.vision, image_size=size))
        self.vision.set_image_size(size)
        self.config = config

    def compile_vision(
        self, frame_batch: int, *, backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        """Run the vision encoder's blocks through `torch.compile`, which nothing else here does.

        Only batches of exactly `frame_batch` frames, the `frame_batch` of `ask` too, run compiled:
        their shapes are static, and the block is compiled once, with the first of them (and once
        more if they are images). A video's last batch has any other number of frames, and runs as
        before. Compiled blocks round otherwise, so tokens are equal within rounding only.

        Args:
            frame_batch: frames per compiled batch; it must fill whole clips.
            backend: of `torch.compile`.

        Raises:
            ValueError: `frame_batch` does not fill whole clips.
        """
        clip = self.config.clip_frames
        if not is_integer(frame_batch) or frame_batch < 1 or frame_batch % clip:
            rule = f"be a positive multiple of the frames per clip ({clip})"
            fail("compile_vision", "frame_batch", rule, frame_batch)
        self.vision.compile_blocks(frame_batch, backend)

    @torch.no_grad()
    def encode(self, pixels: Tensor, images: bool = False) -> Tensor:
        """Normalised frames (frames, 3, size, size) -> visual tokens (frames, n, d_model).

        Frames of a video come in whole clips of `config.clip_frames`. With `images=True` each frame
        is an image, which no other frame is encoded or merged with.

        `preprocess.resize_normalize` makes them of uint8 frames, with the means and deviations of
        `config.vision`; `ask` does all of it.

        Raises:
            ValueError: pixels of another shape, that are no floats, or not whole clips.
        """
        features = self.vision(pixels, images)
        return self.projector(features, images, self.vision.grid(*pixels.shape[-2:]))

    def embed(
        self,
        before: Tensor,
        visual: Tensor | Sequence[Tensor] | None,
        after: Tensor,
        between: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Segment]:
        """Text and visual tokens as one sequence, and where the vision lies in it.

        Args:
            before, after: (batch, n) token ids in front of and behind the vision; n may be 0.
            visual: (frames, n, d_model) of the model's dtype, seen by every row; or a list of
                (n, d_model), one for each run of vision tokens, where frames have unequal counts;
                None for a text-only prompt.
            between: (batch, n) token ids of the texts between the runs, such as each frame's label:
                one fewer than there are runs. Given with a tensor, each frame is a run; without
                it, the tensor is one run.

        Returns:
            (batch, seqlen, d_model) embeddings and their segment.

        Raises:
            ValueError: shapes or dtypes that do not fit together, or an id outside the vocabulary
                (checked for ids on the CPU only; on a GPU the check would be a host sync).
        """
        runs = self._runs_of(visual, between)
        texts = [("before", before), *(("between", text) for text in between), ("after", after)]
        self._check_texts(texts)
        pieces = [self.backbone.embeddings(before)]
        spans, length = [], before.shape[1]
        for run, text in zip(runs, [*between, after]):
            spans.append(VisualSpan(length, len(run)))
            pieces += [run.expand(len(before), -1, -1), self.backbone.embeddings(text)]
            length += len(run) + text.shape[1]
        if not runs:
            pieces.append(self.backbone.embeddings(after))
        embeddings = torch.cat(pieces, dim=1)
        each = self._frame_tokens(visual, runs)
        length = embeddings.shape[1]
        segment = Segment.of_runs(length, spans, device=self.device, frame_tokens=each)
        return embeddings, segment

    def _frame_tokens(
        self, visual: Tensor | Sequence[Tensor] | None, runs: Sequence[Tensor]
    ) -> int:
        """Vision tokens of each frame, or clip that is merged as one; 0 where they are unequal."""
        if isinstance(visual, Tensor):
            frames, each = visual.shape[:2]
            clip = self.config.projector.clip_frames if self.config.projector.merges else 1
            whole = each == self.config.tokens_per_frame and frames % clip == 0
            return each * clip if whole else each
        counts = {len(run) for run in runs}
        return counts.pop() if len(counts) == 1 else 0

    def embed_text(self, name: str, ids: Tensor) -> Tensor:
        """Embeddings (batch, n, d_model) of text ids (batch, n); errors call them `name`."""
        self._check_texts([(name, ids)])
        return self.backbone.embeddings(ids)

    def _runs_of(
        self, visual: Tensor | Sequence[Tensor] | None, between: Sequence[Tensor]
    ) -> list[Tensor]:
        """(n, d_model) of each run of vision tokens, checked."""
        if not isinstance(between, (list, tuple)):
            _refuse("between", "be a list of tensors (batch, n)", shown(between))
        width = self.config.backbone.hidden_size
        rule = f"be a tensor (frames, n, {width})"
        if visual is None:
            runs = []
        elif isinstance(visual, (list, tuple)):
            runs, rule = list(visual), f"be a tensor (n, {width}) for each run"
        elif isinstance(visual, Tensor) and visual.ndim == 3:
            runs = list(visual) if between else [visual.flatten(0, 1)]
        else:
            _refuse("visual", rule, shown(visual))
        if not all(_is_tensor(run, 2) and run.shape[-1] == width for run in runs):
            _refuse("visual", rule, shown(visual))
        if len(between) != max(len(runs) - 1, 0):
            rule = f"have one text fewer than visual has runs ({len(runs)})"
            _refuse("between", rule, len(between))
        for run in runs:
            if run.dtype != self.dtype:
                _refuse("visual", f"be of dtype {self.dtype}", run.dtype)
        return runs

    def _check_texts(self, texts: Sequence[tuple[str, Tensor]]) -> None:
        vocabulary = self.config.backbone.vocab_size
        for name, ids in texts:
            if not (_is_tensor(ids, 2) and ids.dtype in (torch.int32, torch.int64)):
                _refuse(name, "be a tensor (batch, n) of int32 or int64", shown(ids))
            if ids.device.type == "cpu" and ids.numel():
                least, most = int(ids.min()), int(ids.max())
                if not 0 <= least <= most < vocabulary:
                    _refuse(name, f"lie in 0 .. {vocabulary - 1}", f"{least} .. {most}")
            if len(ids) != len(texts[0][1]):
                _refuse(name, f"have the batch of before ({len(texts[0][1])})", len(ids))


def _refuse(name: str, rule: str, got: object) -> NoReturn:
    raise ArgumentError("embed", name, rule, got)


def _is_tensor(value: object, dimensions: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == dimensions


def shown(value: object) -> str:
    """A value as errors describe it: a tensor by shape and dtype, anything else by its type."""
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {', '.join(map(shown, value)) or 'nothing'}"
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {value.dtype}"
