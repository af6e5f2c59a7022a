"""TimeViper: vision transformer, projector and hybrid LLM in one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from timeviper_fast import checkpoint
from timeviper_fast.ask import ask
from timeviper_fast.backbone import HybridBackbone
from timeviper_fast.config import Segment, TimeViperConfig, VisualSpan
from timeviper_fast.generate import Sampling, StageCount, decode, prefill
from timeviper_fast.projector import Projector
from timeviper_fast.vision import VisionTransformer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Generation", "TimeViper"]


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
        return Generation(torch.stack(tokens, dim=1), read.stages, read.kept)

    ask = ask
