"""Loss and accuracy on samples that are not learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from timeviper_fast.dataset.mixture import Mixture
from timeviper_fast.dataset.sample import Source
from timeviper_fast.training.config import EvaluationConfig
from timeviper_fast.training.figures import figures_of, sums_of

if TYPE_CHECKING:
    from timeviper_fast.training.phase import PhaseRun

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    run: PhaseRun, sources: Mapping[str, Source], settings: EvaluationConfig, seed: int
) -> dict[str, float]:
    """Teacher-forced loss and accuracy over the same drawn samples each time.

    Every process takes its share, one sample at a time.
    """
    weights = [settings.sources[name] for name in sources]
    mixture = Mixture(list(sources.values()), weights, seed)
    draws = [mixture.draw() for _ in range(settings.samples)]
    world = run.world
    sums = sums_of(None)
    run.wrapper.eval()
    # Every process must run the model equally often: gathering the weights is a collective.
    for first in range(0, len(draws), world.size):
        number = first + world.rank
        draw = draws[min(number, len(draws) - 1)]
        sample = mixture.sources[draw.source].load(draw.index, draw)
        with run.autocast():
            result = run.wrapper([sample])
        if number < len(draws):
            sums += sums_of(result).cpu()
    run.wrapper.train()
    return figures_of(world.total(sums.to(world.device)))
