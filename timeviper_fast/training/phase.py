"""One phase of a run: optimizer steps on packs, from the first step or from a snapshot."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from timeviper_fast.dataset.sample import Sample
from timeviper_fast.errors import ArgumentError, DataError
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.training.config import PhaseConfig, TrainingConfig
from timeviper_fast.training.figures import SUPERVISED, figures_of, sums_of
from timeviper_fast.training.metrics import MetricsLog
from timeviper_fast.training.optimizer import (
    freeze_all_but,
    learning_rate_factor,
    parameter_groups,
)
from timeviper_fast.training.packed import PackedModel, PackedResult
from timeviper_fast.training.parallel import World, divide, flatten_gates, whole
from timeviper_fast.training.snapshot import latest_snapshot, load_snapshot, save_snapshot
from timeviper_fast.training.stream import StepStream

__all__ = ["PhaseRun", "Progress", "TrainingProgress"]


class TrainingProgress(NamedTuple):
    """The progress of a run.

    Attributes:
        phase: name of the current phase.
        step, steps: optimizer steps taken in this phase, and their total.
        values: the last line of metrics.
    """

    phase: str
    step: int
    steps: int
    values: dict[str, float]


Progress = Callable[[TrainingProgress], None]


class PhaseRun:
    """The state of one phase, and its loop.

    Args:
        config: the run's configuration.
        phase: the phase to run.
        model: the model to train; its weights change in place unless they are sharded.
        stream: gives the samples of each step.
        folder: the phase's folder, for its snapshots.
        world: the processes.
    """

    def __init__(
        self,
        config: TrainingConfig,
        phase: PhaseConfig,
        model: TimeViper,
        stream: StepStream,
        folder: Path,
        world: World,
    ) -> None:
        self.config, self.phase, self.folder, self.world = config, phase, folder, world
        self.model, self.stream = model.train(), stream
        self.stages = model.config.stages
        flatten_gates(model)
        freeze_all_but(model, phase.learn)
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = config.gradient_checkpointing  # type: ignore[assignment]
        self.wrapper = PackedModel(model, phase.selection_loss)
        if world.size > 1:
            # FSDP2 moves one layer at a time: the whole model may not fit on one device
            divide(self.wrapper, model)
        else:
            model.to(world.device)
        groups = parameter_groups(model, phase.learning_rates(), phase.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=phase.learning_rate, betas=phase.betas)
        self.step = 0
        self._last: list[Sample] = []
        # the last step's loss and gradient norm, on the device
        self._finite: Tensor | None = None

    def restore(self) -> None:
        """Continue from the phase's newest snapshot, if there is one."""
        found = self.world.share(latest_snapshot(self.folder))
        if found is not None:
            state = load_snapshot(found, self.wrapper, self.optimizer, self.world)
            self.step = state["step"]
            self.stream.load_state_dict(state["stream"])

    def save(self) -> None:
        self._expect_finite()
        state = {"step": self.step, "stream": self.stream.state_dict()}
        save_snapshot(
            self.folder,
            self.step,
            self.wrapper,
            self.optimizer,
            state,
            self.world,
            self.config.keep_snapshots,
        )

    def run(
        self,
        log: MetricsLog | None,
        evaluate: Callable[[PhaseRun], dict[str, float]] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Take all remaining steps."""
        config, phase = self.config, self.phase
        window = _Window()
        for packs in self.stream.steps(self.step, phase.steps):
            window.add(self.take_step(packs))
            self.step += 1
            last = self.step == phase.steps
            if self.step % config.log_every == 0 or last:
                values, window = self._figures(window), _Window()
                if log is not None:
                    log.write(phase.name, self.step, "train", values)
                if progress is not None:
                    progress(TrainingProgress(phase.name, self.step, phase.steps, values))
            every = config.evaluation.every if config.evaluation else 0
            if evaluate is not None and every and (self.step % every == 0 or last):
                self._expect_finite()
                found = evaluate(self)
                if log is not None:
                    log.write(phase.name, self.step, "evaluation", found)
            if self.step % config.save_every == 0 and not last:
                self.save()

    def take_step(self, packs: list[list[Sample]]) -> Tensor:
        """Take a step on this process's packs; return `sums_of` summed over all packs."""
        phase = self.phase
        factor = learning_rate_factor(self.step, phase.steps, phase.warmup, phase.floor)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        if phase.keep is not None:
            self.model.set_stages(phase.stages_at(self.step, self.stages))
        sums = sums_of(None).to(self.world.device)
        # the copy above has waited for the last step already
        self._expect_finite()
        for samples in packs:
            result = self._loss_of(samples)
            sums += sums_of(result if samples else None).to(sums.device)
        self.world.total(sums)
        parameters = [p for p in self.wrapper.parameters() if p.grad is not None]
        # FSDP2 averages over the processes; the loss is the mean over all supervised tokens
        scale = self.world.size / sums[SUPERVISED].clamp_min(1)
        for parameter in parameters:
            parameter.grad.mul_(scale.to(parameter.grad.dtype))  # type: ignore[union-attr]
        # an infinite limit clips nothing and gives the norm
        norm = whole(nn.utils.clip_grad_norm_(parameters, phase.clip or math.inf))
        self._finite = torch.stack([sums[0], norm.to(sums)])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sums

    def _expect_finite(self) -> None:
        """Raise an ArgumentError if the last step's loss or gradient norm is NaN or infinite.

        The values are equal on all ranks, so all of them raise. The host reads them where it waits
        for the device anyway: before the next step's forward pass, metrics and a snapshot.
        """
        if self._finite is None:
            return
        loss, norm = self._finite.tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            owner = f"phase {self.phase.name!r}, step {self.step}"
            raise ArgumentError(
                owner,
                "loss and gradient norm",
                "be finite",
                f"{loss} and {norm}",
                "try a lower learning_rate or another dtype",
            )

    def _loss_of(self, samples: list[Sample]) -> PackedResult:
        """Loss and gradients of one pack.

        If no sample of the pack can be read, run the previous pack again with its loss times 0.
        Every process must run the model equally often, or the others wait in a collective.
        """
        if not samples and not self._last:
            raise DataError("train", "no sample of the first pack can be read")
        with self.autocast():
            result = self.wrapper(samples or self._last)
        (result.loss if samples else 0 * result.loss).backward()
        self._last = samples or self._last
        return result

    def _figures(self, window: _Window) -> dict[str, float]:
        self._expect_finite()
        rates = {
            group["name"].partition(",")[0]: group["lr"] for group in self.optimizer.param_groups
        }
        figures = window.figures()
        figures.update({f"learning_rate/{part}": rate for part, rate in rates.items()})
        figures["skipped_samples"] = self.stream.skipped
        return figures

    def autocast(self) -> AbstractContextManager[Any]:
        if self.config.autocast is None:
            return nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)


class _Window:
    """Metrics over the steps since the last line."""

    def __init__(self) -> None:
        self.sums, self.since = sums_of(None), time.monotonic()

    def add(self, sums: Tensor) -> None:
        self.sums = self.sums.to(sums.device) + sums

    def figures(self) -> dict[str, float]:
        """The metrics so far."""
        seconds = time.monotonic() - self.since
        values = {**figures_of(self.sums), "seconds": round(seconds, 3)}
        values["tokens_per_second"] = round(values["tokens"] / seconds, 1)
        return values
