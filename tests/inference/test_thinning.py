"""A rhythm decides as the rule does, for every share (p - 1) / p, without knowing the number."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.rows import Rows
from timeviper_fast.inference.thinning import (
    Announced,
    Even,
    Rhythm,
    UniformStage,
    rhythm_of,
    shares,
)
from timeviper_fast.model.transv import TransV
from timeviper_fast.presets import preset
from tvkernels import uniform_topk


def stage(keep: float) -> TransV:
    return TransV(CompressionStage(2, "uniform", keep, transfer=False), preset("tiny").backbone)


def kept_of(keep: float, thinning, tokens: int, push: int = 7) -> list[int]:
    thinned = UniformStage(stage(keep), thinning, None, None)
    numbers, out = torch.arange(tokens), []
    for start in range(0, tokens, push):
        part = numbers[start : start + push]
        out += thinned.push(Rows(part[None, :, None].float(), part)).source.tolist()
    for rows in thinned.end(numbers, tokens, exact=True):
        out += rows.source.tolist()
    return out


@pytest.mark.parametrize("period", range(2, 17))
def test_a_rhythm_is_the_rule_at_every_multiple(period: int) -> None:
    for groups in (1, 2, 3, 10, 699):
        tokens = period * groups
        keep = (period - 1) * groups
        rule = uniform_topk(tokens, keep, None).tolist()
        settled = Rhythm(period).settled(tokens)
        early = Rhythm(period).stays(0, settled).nonzero()[:, 0].tolist()
        assert early == rule[: len(early)]
        # the last group waits
        assert tokens - settled <= period
        assert all(token >= settled for token in rule[len(early) :])


@pytest.mark.parametrize(("keep", "tokens"), [(0.5, 160), (0.75, 96), (0.875, 640), (1.0, 33)])
@pytest.mark.parametrize("push", [1, 16, 1000])
def test_a_stage_keeps_what_the_rule_keeps(keep: float, tokens: int, push: int) -> None:
    [share] = shares([CompressionStage(2, "uniform", keep)])
    made = rhythm_of(share)
    assert made is not None
    rule = uniform_topk(tokens, int(tokens * keep), None).tolist()
    assert kept_of(keep, made, tokens, push) == rule


@pytest.mark.parametrize("keep", [0.5, 0.75, 0.3])
def test_a_known_number_lets_tokens_through_when_an_unknown_one_does(keep: float) -> None:
    """Blocks of rows then fill at the same time, whether or not the number was announced."""
    [share] = shares([CompressionStage(2, "uniform", keep)])
    rhythm = rhythm_of(share)
    rule = uniform_topk(240, int(240 * keep), None)
    announced = Announced(rule, 240, rhythm)
    for arrived in range(240):
        want = arrived if rhythm is None else rhythm.settled(arrived)
        assert announced.settled(arrived) == want
    assert kept_of(keep, announced, 240) == rule.tolist()


@pytest.mark.parametrize(("keep", "tokens"), [(0.5, 161), (0.8, 16), (0.75, 30)])
def test_numbers_for_which_it_is_not_exact_are_refused(keep: float, tokens: int) -> None:
    [share] = shares([CompressionStage(2, "uniform", keep)])
    made = rhythm_of(share)
    assert made is not None
    with pytest.raises(ValueError, match=f"exact online, got {tokens}; announce the number"):
        kept_of(keep, made, tokens)


def test_shares_are_of_what_arrives() -> None:
    keeps = [CompressionStage(2, "uniform", 0.75), CompressionStage(4, "uniform", 0.375)]
    assert shares(keeps) == [Fraction(3, 4), Fraction(1, 2)]
    assert rhythm_of(Fraction(3, 10)) is None
    assert rhythm_of(Fraction(1, 3)) is None


def test_an_even_rhythm_keeps_its_share_of_any_number() -> None:
    even = Even(Fraction(3, 10))
    assert not even.exact
    assert len(kept_of(0.3, even, 1000)) == 300
