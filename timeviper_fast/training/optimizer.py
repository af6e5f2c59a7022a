"""Parameter groups, and the schedule of the learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from timeviper_fast.errors import fail

__all__ = ["PARTS", "freeze_all_but", "learning_rate_factor", "parameter_groups", "part_of"]

# the parts of a model that a phase may train
PARTS = ("vision", "projector", "llm", "transv")

_UNDECAYED = ("A_log", "D", "dt_bias", "alpha", "pos_embed", "conv1d.weight")


def part_of(name: str) -> str:
    """The part that the parameter of that name belongs to."""
    first, _, rest = name.partition(".")
    if first == "backbone":
        return "transv" if rest.startswith("transv.") else "llm"
    return first


def freeze_all_but(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Let only the parameters of `parts` require gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)


def parameter_groups(
    model: nn.Module, learning_rates: dict[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Parameters that require gradients, by part and decay, for a torch optimizer.

    Vectors and scalars (norms, biases, A_log, D, dt_bias, alpha), position embeddings and the
    depthwise convolution do not decay.

    Args:
        model: a TimeViper.
        learning_rates: {part that learns: peak rate}; a group has it as "lr" and, for a schedule,
            as "peak".
        weight_decay: decay of the matrices.

    Raises:
        ValueError: a parameter that learns has no learning rate.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(name)
            if part not in learning_rates:
                fail("parameter_groups", "learning_rates", f"have one for {part}", learning_rates)
            decays = parameter.ndim > 1 and not name.endswith(_UNDECAYED)
            groups.setdefault((part, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "name": part if decays else f"{part}, no decay",
            "lr": learning_rates[part],
            "peak": learning_rates[part],
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]


def learning_rate_factor(step: int, steps: int, warmup: float, floor: float = 0.0) -> float:
    """The factor of the peak learning rate at step `step` (from 0).

    It rises linearly over the first `warmup` of the steps and falls along a cosine towards
    `floor`, which it would reach one step after the last.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    along = (step - rising) / max(steps - rising, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along))
