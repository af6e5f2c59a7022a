"""The network: vision transformer, projector and hybrid LLM in one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timeviper_fast.config import TimeViperConfig
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.model.projector import Projector
from timeviper_fast.model.vision.vit import VisionTransformer

__all__ = ["TimeViperNetwork"]


class TimeViperNetwork(nn.Module):
    """Pixels to visual tokens, visual tokens and text to one sequence, and the LLM that reads it.

    Args:
        config: what to build.

    Source: arXiv 2511.16595.
    """

    def __init__(self, config: TimeViperConfig) -> None:
        super().__init__()
        if not isinstance(config, TimeViperConfig):
            remedy = "preset() makes one, and TimeViper.from_pretrained() loads a model"
            raise ValueError(
                f"TimeViper: config must be a TimeViperConfig, got {config!r}; {remedy}"
            )
        self.config = config
        self.vision = VisionTransformer(config.vision)
        sizes = (config.vision.hidden_size, config.backbone.hidden_size)
        self.projector = Projector(config.projector, *sizes)
        self.backbone = HybridBackbone(config.backbone, config.stages)

    @property
    def device(self) -> torch.device:
        return self.backbone.embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.embeddings.weight.dtype

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised frames (frames, 3, size, size) -> visual tokens (frames, n, d_model).

        `preprocess.resize_normalize` makes them of uint8 frames, with the means and deviations of
        `config.vision`; `ask` does all of it.

        Raises:
            ValueError: pixels of another shape, or that are no floats.
        """
        return self.projector(self.vision(pixels))

    def embed(self, before: Tensor, visual: Tensor | None, after: Tensor) -> tuple[Tensor, Segment]:
        """Text and visual tokens as one sequence, and where the vision lies in it.

        Args:
            before, after: (batch, n) token ids in front of and behind the vision; n may be 0.
            visual: (frames, n, d_model) of the model's dtype, seen by every row; None for a
                text-only prompt.

        Returns:
            (batch, seqlen, d_model) embeddings and their segment.

        Raises:
            ValueError: shapes or dtypes that do not fit together, or an id outside the vocabulary
                (looked for on the CPU only; a GPU is not waited for).
        """
        self._check_prompt(before, visual, after)
        pieces = [self.backbone.embeddings(before)]
        count = 0
        if visual is not None:
            count = visual.shape[0] * visual.shape[1]
            pieces.append(visual.flatten(0, 1).expand(len(before), -1, -1))
        pieces.append(self.backbone.embeddings(after))
        embeddings = torch.cat(pieces, dim=1)
        return embeddings, Segment(embeddings.shape[1], VisualSpan(before.shape[1], count))

    def _check_prompt(self, before: Tensor, visual: Tensor | None, after: Tensor) -> None:
        config = self.config.backbone
        for name, ids in (("before", before), ("after", after)):
            if not (_is_tensor(ids, 2) and ids.dtype in (torch.int32, torch.int64)):
                rule = "be a tensor (batch, n) of int32 or int64"
                raise ValueError(f"embed: {name} must {rule}, got {_kind(ids)}")
            if ids.device.type == "cpu" and ids.numel():
                least, most = int(ids.min()), int(ids.max())
                if not 0 <= least <= most < config.vocab_size:
                    rule = f"lie in 0 .. {config.vocab_size - 1}"
                    raise ValueError(f"embed: {name} must {rule}, got {least} .. {most}")
        if len(before) != len(after):
            rule = f"have the batch of before ({len(before)})"
            raise ValueError(f"embed: after must {rule}, got {len(after)}")
        if visual is None:
            return
        if not (_is_tensor(visual, 3) and visual.shape[-1] == config.hidden_size):
            rule = f"be a tensor (frames, n, {config.hidden_size})"
            raise ValueError(f"embed: visual must {rule}, got {_kind(visual)}")
        if visual.dtype != self.dtype:
            raise ValueError(f"embed: visual must be of dtype {self.dtype}, got {visual.dtype}")


def _is_tensor(value: object, dimensions: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == dimensions


def _kind(value: object) -> str:
    """What a tensor, or what is none, looks like in an error."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {value.dtype}"
