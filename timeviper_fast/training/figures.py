"""Sums of loss and accuracy, added over packs, steps and processes, and their means."""

from __future__ import annotations

import torch
from torch import Tensor

from timeviper_fast.training.packed import PackedResult

__all__ = ["SUPERVISED", "figures_of", "sums_of"]

_SUMS = ("loss", "tokens", "right", "samples", "right_samples", "selection", "selections", "length")
# index of the number of supervised tokens in the tensor of sums
SUPERVISED = _SUMS.index("tokens")


def sums_of(result: PackedResult | None) -> Tensor:
    """(8,) float64, the sums over one pack; all 0 for None."""
    if result is None:
        return torch.zeros(len(_SUMS), dtype=torch.float64)
    packed = result.predicted
    right = packed.logits.argmax(-1) == packed.targets
    count, number = len(packed.targets), int(packed.samples[-1]) + 1
    wrong = torch.zeros(number, dtype=torch.float64, device=right.device)
    wrong.index_add_(0, packed.samples.to(right.device), (~right).double())
    selection = 0.0 if result.selection is None else result.selection.detach()
    values = (
        packed.loss.detach() * count,
        count,
        right.sum(),
        number,
        (wrong == 0).sum(),
        selection,
        result.selection is not None,
        result.length,
    )
    return torch.stack([torch.as_tensor(v, device=right.device).double() for v in values])


def figures_of(sums: Tensor) -> dict[str, float]:
    """Means of `sums_of`: the loss per supervised token, the shares of supervised tokens and of
    samples that are predicted right, and the selection loss where there is one."""
    values = dict(zip(_SUMS, sums.tolist()))
    tokens, samples = max(values["tokens"], 1), max(values["samples"], 1)
    figures = {
        "loss": values["loss"] / tokens,
        "token_accuracy": values["right"] / tokens,
        "sample_accuracy": values["right_samples"] / samples,
        "supervised_tokens": values["tokens"],
        "samples": values["samples"],
        "tokens": values["length"],
    }
    if values["selections"]:
        figures["selection_loss"] = values["selection"] / values["selections"]
    return figures
