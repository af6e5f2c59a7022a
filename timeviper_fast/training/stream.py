"""The samples of a phase's steps, divided among the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from timeviper_fast.config import CompressionStage, TimeViperConfig
from timeviper_fast.dataset.loader import PackLoader
from timeviper_fast.dataset.mixture import Mixture
from timeviper_fast.dataset.packing import Pack, Packer
from timeviper_fast.dataset.sample import Cost, Sample, Source
from timeviper_fast.errors import fail
from timeviper_fast.layout import Segment, VisualSpan, tokens_before_layer
from timeviper_fast.training.config import PhaseConfig, TrainingConfig
from timeviper_fast.training.parallel import World

__all__ = ["StepStream", "tokens_per_layer"]

# packs that are open at a time, until samples fill them
_WINDOW = 64


def tokens_per_layer(config: TimeViperConfig, cost: Cost) -> int:
    """Tokens of a sample that reach a layer, on average over the layers."""
    vision = config.visual_tokens(cost.frames)
    each = config.frame_tokens(cost.frames) if vision else 0
    segment = Segment(cost.text + vision, VisualSpan(0, vision), frame_tokens=each)
    layers = config.backbone.num_hidden_layers
    return -(-sum(tokens_before_layer((segment,), config.stages, layers)) // layers)


def _kept(stages: tuple[CompressionStage, ...]) -> float:
    return sum(stage.keep for stage in stages)


class StepStream:
    """The packs of each step; they do not depend on the number of processes.

    Args:
        sources: the mixture's sources.
        packer: packs the drawn samples.
        packs_per_step: packs of a step, over all processes.
        world: the processes; each decodes only its own packs.
        workers: number of processes that decode videos.
        on_error: "raise" or "skip", for a sample that cannot be read.
        complete: applied to each sample in this process, for instance to encode its frames.

    Raises:
        ValueError: the packs of a step cannot be divided among the processes.
    """

    def __init__(
        self,
        sources: list[Source],
        packer: Packer,
        packs_per_step: int,
        world: World,
        workers: int = 0,
        on_error: str = "raise",
        complete: Callable[[Sample], Sample] | None = None,
    ) -> None:
        if packs_per_step % world.size:
            rule = f"be a multiple of the {world.size} processes"
            fail("train", "packs_per_step", rule, packs_per_step)
        self.sources, self.packer, self.world = sources, packer, world
        self.packs_per_step, self.workers, self.on_error = packs_per_step, workers, on_error
        self.complete = complete or (lambda sample: sample)
        self.skipped = 0
        self._state: dict[str, Any] | None = packer.state_dict()

    @classmethod
    def of_phase(
        cls,
        config: TrainingConfig,
        phase: PhaseConfig,
        number: int,
        sources: Mapping[str, Source],
        shape: TimeViperConfig,
        world: World,
        complete: Callable[[Sample], Sample] | None = None,
    ) -> StepStream:
        """The stream of phase `number`, counted from 1."""
        names = list(sources)
        # plan packs for the step at which the stages keep the most tokens
        most = max(0, phase.steps - 1, key=lambda step: _kept(phase.stages_at(step, shape.stages)))
        shape = replace(shape, stages=phase.stages_at(most, shape.stages))
        weights = [phase.sources[name] for name in names]
        mixture = Mixture([sources[name] for name in names], weights, config.seed + number)
        packer = Packer(
            mixture,
            phase.tokens_per_pack,
            _WINDOW,
            partial(tokens_per_layer, shape),
            on_error=config.on_error,
        )
        given = (phase.packs_per_step, world, config.workers, config.on_error, complete)
        return cls(list(sources.values()), packer, *given)

    def steps(self, start: int, stop: int) -> Iterator[list[list[Sample]]]:
        """This process's packs of the steps `start` to `stop` - 1."""
        loader = PackLoader(
            self.sources, self._own(stop - start), workers=self.workers, on_error=self.on_error
        )
        loaded = iter(loader)
        own = self.packs_per_step // self.world.size
        for _ in range(start, stop):
            packs = [next(loaded) for _ in range(own)]
            self._state = packs[-1][1].state
            self.skipped += sum(len(pack.draws) - len(samples) for samples, pack in packs)
            yield [[self.complete(sample) for sample in samples] for samples, _ in packs]

    def _own(self, steps: int) -> Iterator[Pack]:
        """This process's packs; each carries the packer's state after its whole step."""
        for _ in range(steps):
            packs = [self.packer.next() for _ in range(self.packs_per_step)]
            for pack in packs[self.world.rank :: self.world.size]:
                yield replace(pack, state=packs[-1].state)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last step that was taken, as JSON values."""
        return {"packer": self._state, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state, self.skipped = state["packer"], state["skipped"]
        self.packer.load_state_dict(state["packer"])
