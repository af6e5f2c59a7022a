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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from timeviper_fast.errors import ArgumentError, expect_folder, is_integer
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.synthetic.kinds import OPTIONS, synthetic_source
from timeviper_fast.synthetic.pool import PoolSize
from timeviper_fast.synthetic.questions import DEFAULT_TASKS
from timeviper_fast.synthetic.vision import Mix, VisionPlan, pretrain_vision
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.training.config import PhaseConfig, SourceConfig, TrainingConfig
from timeviper_fast.training.kinds import KINDS
from timeviper_fast.training.phase import Progress
from timeviper_fast.training.trainer import train

__all__ = ["TinyPlan", "train_tiny"]

_PRESET = "tiny-trained"
_LEVELS = {"study": 2.0, "hard": 1.0}
_SHARED: dict[str, Any] = {
    "learn": ("projector", "llm", "transv"),
    "weight_decay": 0.05,
    "betas": (0.9, 0.98),
    "selection_loss": 0.1,
}


def _phase(
    name: str, steps: int, frames: tuple[int, int], keep: tuple[float, float], tokens: int,
    rate: float, floor: float, levels: dict[str, float] = _LEVELS,
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
        sources=dict(levels),
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
        pool: number of frames of which videos are drawn.
        tasks: tasks of the questions.
        measured: number of frames on which the encoder's errors are measured.
        seed: seed of weights, frames and questions.
    """

    vision: VisionPlan = field(default_factory=VisionPlan)
    phases: tuple[PhaseConfig, ...] = _PHASES
    pool: PoolSize = field(default_factory=PoolSize)
    tasks: tuple[str, ...] = DEFAULT_TASKS
    measured: int = 2048
    seed: int = 0

    @classmethod
    def short(cls, steps: int, seed: int = 0) -> TinyPlan:
        """A trial run of the whole way, which learns colours within 250 steps.

        The encoder takes `steps` steps, and the language model as many on videos of at most four
        frames and a tenth of them on longer ones.

        Raises:
            ValueError: `steps` is not an integer above 0.
        """
        if not (is_integer(steps) and steps > 0):
            raise ArgumentError("train_tiny", "steps", "be an integer above 0", steps)
        study = {"study": 1.0}
        return cls(
            VisionPlan(steps, 40, 4e-3, 10, hard=0.0, mixes=(Mix(0, 0.25, 0.4),), seed=seed),
            (
                _phase("shortest", steps, (1, 4), (0.5, 0.5), 480, 3e-3, 0.1, study),
                _phase("short", max(steps // 10, 1), (4, 32), (0.5, 0.25), 720, 2e-3, 0.0, study),
            ),
            PoolSize(1024, signs=2, shapes=40, links=2),
            ("colour",),
            256,
            seed,
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
        ValueError: `folder` is a file, holds other files, or holds a run with another plan.
    """
    expect_folder("train_tiny", "folder", folder)
    folder, plan = Path(folder), plan or TinyPlan()
    if folder.exists() and any(folder.iterdir()) and not (folder / "vision").is_dir():
        rule = "be new or empty, or the folder of a run that stopped"
        raise ArgumentError("train_tiny", "folder", rule, folder)
    config = preset(_PRESET)
    for line in pretrain_vision(
        config, plan.vision, folder / "vision", measure_frames=plan.measured
    ):
        if on_vision is not None:
            on_vision(line)
    if not (folder / "start").is_dir():
        _first_model(folder / "vision", plan.seed).save_pretrained(folder / "start")
    run = TrainingConfig(
        str(folder / "start"),
        str(folder / "language"),
        tuple(_source(level, plan) for level in _LEVELS if _draws(plan, level)),
        plan.phases,
        seed=plan.seed,
        # a short run saves several times, too
        save_every=max(1, min(200, plan.phases[0].steps // 4)),
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


def _draws(plan: TinyPlan, level: str) -> bool:
    return any(level in phase.sources for phase in plan.phases)


def _source(level: str, plan: TinyPlan) -> SourceConfig:
    # other seeds than plan.seed, whose worlds the encoder was trained on
    seed = plan.seed + (1 if level == "study" else 2)
    options = {"level": level, "seed": seed, "plain": plan.pool.plain}
    own = {"tasks": list(plan.tasks), **asdict(plan.pool)}
    options |= {name: value for name, value in own.items() if value != OPTIONS[name]}
    return SourceConfig(level, "synthetic", options)


def _first_model(vision: Path, seed: int) -> TimeViper:
    from safetensors.torch import load_file

    model = TimeViper(preset(_PRESET), byte_tokenizer())
    init_weights(model, seed=seed, for_training=True)
    model.vision.load_state_dict(load_file(vision / "vision.safetensors"))
    return model
