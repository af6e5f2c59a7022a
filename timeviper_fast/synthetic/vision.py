"""Pretraining of the vision encoder: linear heads read the needle from each merged token.

The heads predict the kind, both glyphs and the colour from each output token of `Projector.merge`;
they are discarded. Errors are measured on an exponential moving average of the weights, which is
saved too: the average is usable long before the learning rate has decayed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timeviper_fast.atomic import whole_file
from timeviper_fast.config import TimeViperConfig, VisionConfig
from timeviper_fast.errors import ArgumentError
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.projector import Projector
from timeviper_fast.model.vision.build import build_encoder
from timeviper_fast.synthetic.glyphs import GLYPHS, LETTERS
from timeviper_fast.synthetic.lessons import IGNORE, Lesson, lesson
from timeviper_fast.synthetic.levels import LEVELS
from timeviper_fast.synthetic.needle import COLOURS, KINDS
from timeviper_fast.synthetic.world import World

__all__ = [
    "Mix",
    "Reader",
    "VisionPlan",
    "VisionTrainer",
    "measure",
    "pretrain_vision",
    "saved_reader",
]

HEADS = {"kind": len(KINDS), "first": len(LETTERS), "second": len(GLYPHS), "colour": len(COLOURS)}
# seed of the frames on which errors are measured, far from any training seed
HELD_OUT = 1 << 40


@dataclass(frozen=True)
class Mix:
    """The mix of training frames from a step on.

    Attributes:
        step: the first step that draws them.
        plain: share of frames without a needle.
        lookalike: share of plain frames with a look-alike card (hard negatives).
        weight: weight of plain frames in the loss of the kind head. A video has thousands of plain
            frames for each needle, so a false needle costs more than a missed one.
    """

    step: int
    plain: float
    lookalike: float
    weight: float = 1.0


# The share of look-alike cards rises at step 5,000: by then glyph errors are below 0.1 %, and false
# needles are the main error left. From step 9,000 on, plain frames weigh more to make these rarer.
_MIXES = (Mix(0, 0.25, 0.4), Mix(5_000, 0.45, 0.6), Mix(9_000, 0.6, 0.5, weight=4.0))


@dataclass(frozen=True)
class VisionPlan:
    """Settings of the encoder's training. Each frame is drawn once and never repeated.

    Attributes:
        steps, batch: number of optimizer steps, and frames per step.
        learning_rate: the peak; linear warmup over `warmup` steps, then cosine decay to 2 %.
        weight_decay: decay of matrices; biases, norms and position embeddings have none.
        average: largest decay of the moving average per step.
        hard: share of frames of level "hard".
        mixes: mixes of frames, by ascending step; the first begins at 0.
        seed: seed of the initial weights and of the frames.
    """

    steps: int = 40_000
    batch: int = 128
    learning_rate: float = 2e-3
    warmup: int = 300
    weight_decay: float = 0.05
    average: float = 0.9995
    hard: float = 0.4
    mixes: tuple[Mix, ...] = _MIXES
    seed: int = 0

    def mix(self, step: int) -> Mix:
        """The mix at a step."""
        return [mix for mix in self.mixes if mix.step <= step][-1]

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        rising = min(1.0, (step + 1) / self.warmup)
        done = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * rising * (0.51 + 0.49 * math.cos(math.pi * min(done, 1.0)))


class Reader(nn.Module):
    """The vision encoder with a linear head on each merged token.

    Args:
        config: a model's configuration; only vision and projector are used.
    """

    def __init__(self, config: TimeViperConfig) -> None:
        super().__init__()
        self.vision = build_encoder(config.vision)
        width = config.vision.hidden_size
        self._projector = [Projector(config.projector, width, 1)]  # in a list: not trained
        self.heads = nn.Linear(width, sum(HEADS.values()))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(frames, 3, S, S) -> logits (frames, tokens, classes) of each head."""
        tokens = self._projector[0].merge(self.vision(pixels))
        return dict(zip(HEADS, self.heads(tokens).split(list(HEADS.values()), dim=-1)))


def reading_loss(logits: dict[str, Tensor], labels: Tensor, plain: float = 1.0) -> Tensor:
    """Sum over the heads of the mean cross entropy over the tokens that have a label.

    Args:
        logits: the output of `Reader`.
        labels: (frames, heads), as in `Lesson`.
        plain: weight of plain frames in the mean of the kind head; the weights sum to 1.
    """
    total = torch.zeros(())
    for column, (name, scores) in zip(labels.T, logits.items()):
        targets = column[:, None].expand(scores.shape[:2]).flatten()
        weight = torch.ones(scores.shape[-1])
        if name == "kind":
            weight[KINDS.index("plain")] = plain
        if bool((targets != IGNORE).any()):
            total = total + F.cross_entropy(
                scores.flatten(0, 1), targets, weight, ignore_index=IGNORE
            )
    return total


class VisionTrainer:
    """A training run; a saved state continues it bit for bit on the same machine.

    Args:
        config: the model whose vision encoder is trained.
        plan: settings of the training.
    """

    def __init__(self, config: TimeViperConfig, plan: VisionPlan) -> None:
        self.config, self.plan, self.step = config, plan, 0
        self.lines: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.reader, self.averaged = Reader(config), Reader(config)
        init_weights(self.reader, seed=plan.seed)
        self.averaged.load_state_dict(self.reader.state_dict())
        matrices = [p for p in self.reader.parameters() if p.ndim > 1 and p.shape[0] > 1]
        rest = [p for p in self.reader.parameters() if p.ndim == 1 or p.shape[0] == 1]
        groups = [
            {"params": matrices, "weight_decay": plan.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98))

    def batch(self) -> Lesson:
        """The frames of the next step."""
        plan, mix = self.plan, self.plan.mix(self.step)
        worlds = {level: World(plan.seed, level, mix.lookalike) for level in LEVELS}
        return lesson(worlds, self.step * plan.batch, plan.batch, mix.plain, plan.hard)

    def train_step(self) -> float:
        """One step; returns its loss."""
        pixels, labels = self.batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step)
        loss = reading_loss(self.reader(pixels), labels, self.plan.mix(self.step).weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.reader.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        # a smaller decay in early steps, or the average would keep the initial weights for long
        weight = 1 - min(self.plan.average, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, new in zip(self.averaged.parameters(), self.reader.parameters()):
                mean.lerp_(new, weight)
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        return {
            "plan": asdict(self.plan),
            "vision": asdict(self.config.vision),
            "step": self.step,
            "losses": self.losses,
            "lines": self.lines,
            "reader": self.reader.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a saved run.

        Raises:
            ValueError: the state belongs to another plan or encoder.
        """
        # fields that are newer than the saved run have their defaults
        saved = {"plan": state["plan"], "vision": asdict(VisionConfig(**state["vision"]))}
        for name, own in (("plan", self.plan), ("vision", self.config.vision)):
            before, now = saved[name], asdict(own)
            if differ := [key for key in now if before.get(key) != now[key]]:
                old, new = (
                    ", ".join(f"{key}={some.get(key)}" for key in differ) for some in (before, now)
                )
                rule = f"be that of the saved run ({old})"
                raise ArgumentError("pretrain_vision", name, rule, new)
        self.step, self.losses, self.lines = state["step"], state["losses"], state["lines"]
        self.reader.load_state_dict(state["reader"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def measure(reader: Reader, level: str, frames: int, *, seed: int = HELD_OUT) -> dict[str, float]:
    """Error rates on held-out frames.

    Args:
        reader: encoder and heads.
        level: level of the world.
        frames: number of frames with a needle, and of plain frames.
        seed: seed of the world.

    Returns:
        For each head, the share of wrong tokens among the labelled tokens of frames with needles;
        under `false`, the share of plain frames with a token that predicts a needle.
    """
    worlds = {name: World(seed, level) for name in LEVELS}
    wrong, counted, false = dict.fromkeys(HEADS, 0), dict.fromkeys(HEADS, 0), 0
    for start in range(0, frames, 256):
        count = min(256, frames - start)
        pixels, labels = lesson(worlds, start, count, 0.0, 0.0)
        for (name, scores), column in zip(reader(pixels).items(), labels.T):
            seen = column != IGNORE
            wrong[name] += int((scores.argmax(-1) != column[:, None])[seen].sum())
            counted[name] += int(seen.sum()) * scores.shape[1]
        pixels, _ = lesson(worlds, frames + start, count, 1.0, 0.0)
        named = reader(pixels)["kind"].argmax(-1) != KINDS.index("plain")
        false += int(named.any(-1).sum())
    errors = {name: wrong[name] / max(counted[name], 1) for name in HEADS}
    return errors | {"false": false / frames}


def saved_reader(config: TimeViperConfig, folder: Path) -> Reader:
    """The averaged encoder and heads of the run in `folder`, for `measure`.

    Args:
        config: the model whose vision encoder was trained.
        folder: the folder of `pretrain_vision`.
    """
    reader = Reader(config)
    state = torch.load(folder / "state.pt", weights_only=True)
    reader.load_state_dict(state["averaged"])
    return reader


def pretrain_vision(
    config: TimeViperConfig,
    plan: VisionPlan,
    folder: Path,
    *,
    save_seconds: float = 60.0,
    measure_steps: int = 1000,
    measure_frames: int = 2048,
) -> Iterator[dict[str, Any]]:
    """Train, or continue the run in `folder`; yield the lines of the log.

    The folder gets `state.pt` (to continue), `vision.safetensors` (the averaged encoder, under the
    names of the encoder) and `log.jsonl`. Each file is replaced whole.

    Args:
        config: the model whose vision encoder is trained.
        plan: settings of the training; a folder with another plan is an error.
        folder: made if it does not exist.
        save_seconds: seconds between two saved states.
        measure_steps: steps between two measurements of errors.
        measure_frames: frames of a measurement.
    """
    trainer = VisionTrainer(config, plan)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "state.pt").exists():
        trainer.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    saved = time.monotonic()
    while trainer.step < plan.steps:
        trainer.losses.append(trainer.train_step())
        last = trainer.step == plan.steps
        if trainer.step % measure_steps == 0 or last:
            yield _report(trainer, measure_frames)
        if last or time.monotonic() - saved > save_seconds:
            _save(trainer, folder)
            saved = time.monotonic()


def _report(trainer: VisionTrainer, frames: int) -> dict[str, Any]:
    """Measure the averaged weights, and add a line to the log."""
    mean = sum(trainer.losses) / len(trainer.losses)
    line: dict[str, Any] = {"step": trainer.step, "loss": mean}
    line |= {level: measure(trainer.averaged, level, frames) for level in LEVELS}
    trainer.lines.append(line)
    trainer.losses.clear()
    return line


def _save(trainer: VisionTrainer, folder: Path) -> None:
    """Write all files, `state.pt` last: a run stopped in between rewrites the other two."""
    from safetensors.torch import save_file

    log = "".join(json.dumps(line) + "\n" for line in trainer.lines)
    weights = trainer.averaged.vision.state_dict()
    _replace(folder / "log.jsonl", lambda path: path.write_text(log, encoding="utf-8"))
    _replace(folder / "vision.safetensors", lambda path: save_file(weights, path))
    _replace(folder / "state.pt", lambda path: torch.save(trainer.state_dict(), path))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    with whole_file(path) as partial:
        write(partial)
