"""Trains a small model of the synthetic world from random weights.

FOLDER/
    vision/      the vision encoder's pretraining
    start/       the pretrained encoder with a random language model
    language/    the run of timeviper_fast.training
    model/       the result
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timeviper_fast.errors import ArgumentError, is_integer
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.synthetic.kinds import synthetic_source
from timeviper_fast.synthetic.vision import VisionPlan, pretrain_vision
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.training.config import PhaseConfig, SourceConfig, TrainingConfig
from timeviper_fast.training.kinds import KINDS
from timeviper_fast.training.phase import Progress
from timeviper_fast.training.trainer import train

__all__ = ["TinyPlan", "train_tiny"]

_PRESET = "tiny-trained"
_SHARED: dict[str, Any] = {
    "sources": {"study": 2.0, "hard": 1.0},
    "learn": ("projector", "llm", "transv"),
    "weight_decay": 0.05,
    "betas": (0.9, 0.98),
    "selection_loss": 0.1,
}


def _phase(
    name: str, steps: int, frames: tuple[int, int], keep: tuple[float, float], tokens: int,
    rate: float, floor: float,
) -> PhaseConfig:  # fmt: skip
    return PhaseConfig(
        name,
        steps,
        frames=frames,
        keep=((0.5, 0.5), keep),
        tokens_per_pack=tokens,
        learning_rate=rate,
        transv_learning_rate=rate,
        floor=floor,
        **_SHARED,
    )


# from short videos with a large keep value to long videos with keep 0.1
_PHASES = (
    _phase("short", 1500, (8, 32), (0.5, 0.3), 1500, 2e-3, 0.3),
    _phase("middle", 700, (16, 64), (0.3, 0.1), 1500, 2e-3, 0.5),
    _phase("long", 1400, (48, 256), (0.1, 0.1), 2000, 1.5e-3, 0.3),
    _phase("longest", 2000, (128, 1024), (0.1, 0.1), 3000, 1e-3, 0.0),
)


@dataclass(frozen=True)
class TinyPlan:
    """How the tiny model is trained.

    Attributes:
        vision: plan of the vision encoder's pretraining.
        phases: training phases of the language model; the encoder is frozen.
        plain: number of plain frames in the pool of which videos are drawn.
        seed: seed of weights, frames and questions.
    """

    vision: VisionPlan = field(default_factory=VisionPlan)
    phases: tuple[PhaseConfig, ...] = _PHASES
    plain: int = 12_000
    seed: int = 0

    @classmethod
    def short(cls, steps: int, seed: int = 0) -> TinyPlan:
        """A trial run: at most `steps` steps of the encoder and of each phase.

        Raises:
            ValueError: `steps` is not an integer above 0.
        """
        if not (is_integer(steps) and steps > 0):
            raise ArgumentError("train_tiny", "steps", "be an integer above 0", steps)
        whole = cls(seed=seed)
        return replace(
            whole,
            vision=replace(whole.vision, steps=min(steps, whole.vision.steps), seed=seed),
            phases=tuple(replace(p, steps=min(steps, p.steps)) for p in whole.phases),
            # the longest video needs this many plain frames
            plain=max(p.frames[1] for p in whole.phases),
        )


def train_tiny(
    folder: str | Path,
    plan: TinyPlan | None = None,
    *,
    on_vision: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train the tiny model, or continue where the run in `folder` stopped.

    Args:
        folder: the run's folder; made if it does not exist.
        plan: steps, phases, pool and seed.
        on_vision: called with each line of the encoder's log.
        progress: called with each line of the language model's metrics.

    Returns:
        The folder of the trained model (bfloat16), which `TimeViper.from_pretrained` loads.

    Raises:
        ValueError: `folder` holds a run with another plan.
    """
    folder, plan = Path(folder), plan or TinyPlan()
    config = preset(_PRESET)
    for line in pretrain_vision(config, plan.vision, folder / "vision"):
        if on_vision is not None:
            on_vision(line)
    if not (folder / "start").is_dir():
        _first_model(folder / "vision", plan.seed).save_pretrained(folder / "start")
    run = TrainingConfig(
        str(folder / "start"),
        str(folder / "language"),
        tuple(_source(level, plan) for level in ("study", "hard")),
        plan.phases,
        seed=plan.seed,
        save_every=200,
        save_dtype="bfloat16",
    )
    last = train(run, {**KINDS, "synthetic": synthetic_source}, progress=progress)
    model = folder / "model"
    if not model.is_dir():
        partial = folder / ".model"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(last, partial)
        partial.rename(model)
    return model


def _source(level: str, plan: TinyPlan) -> SourceConfig:
    # other seeds than plan.seed, whose worlds the encoder was trained on
    seed = plan.seed + (1 if level == "study" else 2)
    options = {"level": level, "seed": seed, "plain": plan.plain}
    return SourceConfig(level, "synthetic", options)


def _first_model(vision: Path, seed: int) -> TimeViper:
    from safetensors.torch import load_file

    model = TimeViper(preset(_PRESET), byte_tokenizer())
    init_weights(model, seed=seed, for_training=True)
    model.vision.load_state_dict(load_file(vision / "vision.safetensors"))
    return model
