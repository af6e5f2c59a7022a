"""Sums over packs, and their means."""

from __future__ import annotations

import math

import pytest
import torch

from timeviper_fast.training.figures import SUPERVISED, figures_of, sums_of
from timeviper_fast.training.loss import Packed
from timeviper_fast.training.packed import PackedResult


def result(right, samples, loss=2.0, selection=None):
    """A pack's result: for each supervised token, whether it is right, and its sample."""
    targets = torch.arange(len(right))
    logits = torch.nn.functional.one_hot((targets + ~torch.tensor(right)) % len(right)).float()
    packed = Packed(torch.tensor(loss), logits, targets, torch.tensor(samples), [])
    chosen = None if selection is None else torch.tensor(selection)
    return PackedResult(packed.loss * len(right), packed, chosen, 50)


def test_a_sample_is_right_when_all_its_tokens_are():
    figures = figures_of(sums_of(result([True, True, False, True], [0, 0, 1, 1])))
    assert figures == {
        "loss": 2.0,
        "token_accuracy": 0.75,
        "sample_accuracy": 0.5,
        "supervised_tokens": 4,
        "samples": 2,
        "tokens": 50,
    }


def test_packs_add_up_by_their_supervised_tokens():
    sums = sums_of(result([True] * 3, [0, 0, 0], loss=1.0, selection=0.5))
    sums += sums_of(result([False, False], [0, 1], loss=3.5))
    assert sums[SUPERVISED] == 5
    figures = figures_of(sums)
    assert figures["loss"] == pytest.approx((3 * 1.0 + 2 * 3.5) / 5)
    assert figures["sample_accuracy"] == pytest.approx(1 / 3)
    assert figures["selection_loss"] == 0.5


def test_nothing_gives_zeros_and_no_division_by_zero():
    assert float(sums_of(None).abs().sum()) == 0
    assert all(math.isfinite(value) for value in figures_of(sums_of(None)).values())
