"""A tiny model and samples that fit it."""

from __future__ import annotations

from dataclasses import replace

import torch

from timeviper_fast.config import (
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.dataset.sample import Cost, Draw, Limits, Sample
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.training.config import TrainingConfig, config_from_dict

STAGES = (
    CompressionStage(1, "uniform", 0.5),
    CompressionStage(2, "attention", 0.25, score="normed"),
)
CONFIG = TimeViperConfig(
    backbone=BackboneConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=32,
        pattern="M-*M",
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=2,
        ssm_state_size=8,
        chunk_size=16,
        eos_token_ids=(256,),
    ),
    vision=VisionConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        feature_layer=-1,
    ),
    projector=ProjectorConfig(num_tokens=4, merge_heads=4),
    stages=STAGES,
)


def tiny(dtype: torch.dtype = torch.float32, **changes: object) -> TimeViper:
    """A model with open transfer gates, so that every parameter has an effect."""
    model = TimeViper(replace(CONFIG, **changes), byte_tokenizer())
    init_weights(model, seed=0, for_training=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.fill_(0.5)
    return model.to(dtype)


def turns(question: str, answer: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": question}, {"role": "assistant", "content": answer})


def pixels(frames: int, seed: int = 0, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 3, size, size, generator=generator)


def samples() -> list[Sample]:
    """Two videos, one of them as features, and a text between them."""
    features = torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(5))
    return [
        Sample(turns("What is it?", "A sign."), pixels=pixels(8), needed=(2,)),
        Sample(turns("And now?", "No.")),
        Sample(turns("Who?", "Me."), features=features, needed=(0, 5), preface="Six frames. "),
    ]


class Pictures:
    """A source whose answer is one of four letters; one of the frames shows it.

    Args:
        shuffled: whether the answers are independent of the frames.
        texts: whether every second row has no vision.
    """

    def __init__(
        self,
        name: str = "pictures",
        limits: Limits | None = None,
        shuffled: bool = False,
        texts: bool = False,
    ) -> None:
        self.name, self._limits = name, limits or Limits()
        self._shuffled, self._texts = shuffled, texts

    def __len__(self) -> int:
        return 64

    def cost(self, index: int, draw: Draw) -> Cost:
        return Cost(0 if self._is_text(index) else 2 + index % 3, 60)

    def _is_text(self, index: int) -> bool:
        return self._texts and index % 2 == 1

    def load(self, index: int, draw: Draw) -> Sample:
        if self._is_text(index):
            return Sample(turns("Say A.", "A"), name=f"{self.name}:{index}")
        frames, size = 2 + index % 3, self._limits.image_size or 16
        letter = (draw.seed if self._shuffled else index) % 4
        seen = 0.1 * pixels(frames, index, size)
        seen[index % frames, :, : size // 2, (index % 4) * size // 4 :] += 2
        given = turns("Which?", "ABCD"[letter])
        return Sample(given, pixels=seen, needed=(index % frames,), name=f"{self.name}:{index}")

    def limits(self, limits: Limits) -> Pictures:
        return Pictures(self.name, limits, self._shuffled, self._texts)


KINDS = {"pictures": lambda table, setting: Pictures(table.name, **table.options)}


def run_of(output: object, **changes: object) -> TrainingConfig:
    """A run of two short phases on `Pictures`; `changes` replace fields of the run."""
    source = {"name": "pictures", "kind": "pictures"}
    shared = {"steps": 6, "sources": {"pictures": 1.0}, "tokens_per_pack": 250}
    phases = [
        {**shared, "name": "alignment", "learn": ["projector"], "keep": [1.0, 1.0]},
        {
            **shared,
            "name": "tuning",
            "learn": ["vision", "projector", "llm", "transv"],
            "keep": [[1.0, 0.5], [1.0, 0.25]],
            "selection_loss": 0.1,
        },
    ]
    tables = {"source": [source], "phase": phases, "save_every": 2, "log_every": 1}
    return config_from_dict(
        {"model": "preset:tiny-for-tests", "output": str(output), **tables, **changes}
    )
