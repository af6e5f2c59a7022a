"""A wrong provider gets no time: values, gradients and integers, at the shape that is timed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import tvkernels
from benchmarks.timing.bench import Provider, Split
from benchmarks.timing.correctness import Sample, spread
from tests.benchmarks.timing.lab import LARGE, SMALL, norm, right, rows_of


def last_row_lost(y: torch.Tensor) -> torch.Tensor:
    return y.index_fill(1, torch.tensor(y.shape[1] - 1), 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda y: y * 1.1, "result 0: L2 error 0.1, may be 0.00"),
        (lambda y: y * 1.01, "result 0: largest error 0.01"),
        (last_row_lost, "result 0: largest error "),
        # row 3 is in part 1 of 64, which is not in the sample
        (lambda y: y.index_fill(1, torch.tensor(3), math.inf), "not finite: result 0"),
        (lambda y: (y, y), "it gives result 0, result 1, not result 0"),
        (lambda y: y[..., :24], "result 0: shape (1, 32, 24), not (1, 32, 48)"),
    ],
)
def test_a_wrong_provider_gets_no_time(change: Callable, why: str) -> None:
    """Ours neither."""
    rows = rows_of(norm(), ours=lambda **options: change(right(**options)), right=right)
    assert rows["ours"]["reason"].startswith(f"fails the contract: {why}")
    assert "ms" not in rows["ours"]
    assert rows["right"]["ms"] > 0
    assert rows["right"]["checked"] == "16 of 64 parts"


@pytest.mark.parametrize("leaf", ["weight", "x"])
def test_a_wrong_gradient_gets_no_time_though_the_values_are_right(leaf: str) -> None:
    """The weight's sums over all rows; the rows outside the sample have cotangent 0."""

    def wrong(**options: torch.Tensor) -> torch.Tensor:
        x = options[leaf].clone()
        x.register_hook(lambda gradient: gradient / 2)
        return right(**{**options, leaf: x})

    rows = rows_of(norm(backward=True), wrong=wrong)
    assert rows["wrong"]["reason"].startswith(f"fails the contract: d{leaf}: ")
    assert rows["ours"]["ms"] > 0
    assert rows["reference"]["error_over_bound"] < 0.6


def test_integers_must_be_exact() -> None:
    def other_slots(**options: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens, sizes, slots = tvkernels.tome_merge(**options)
        return tokens, sizes, slots.flip(1)

    row = rows_of(SMALL["token merging, small"], other=other_slots)["other"]
    assert row["reason"] == "fails the contract: result 2: integers differ from the exact ones"


@pytest.mark.parametrize(
    ("kept", "dropped", "why"),
    [
        ([0, 2], [1, 3], None),
        ([0, 1], [2, 3], "it dropped a token above one that it kept"),
        ([2, 0], [1, 3], "its indices do not ascend"),
        ([0, 2], [1, 2], "kept and dropped are not all of the span, each token once"),
    ],
)
def test_a_selection_is_judged_by_its_own_scores(
    kept: list[int], dropped: list[int], why: str | None
) -> None:
    """Equal scores leave the order open, so the indices need not be the reference's."""
    select, scores = SMALL["selection, small"], torch.tensor([[4.0, 1.0, 3.0, 2.0]])
    results = [torch.tensor([kept]), torch.tensor([dropped]), scores]
    assert select.bench.judge({}, results) == why
    if why:
        row = rows_of(select, other=lambda **options: results)["other"]
        assert row["reason"] == f"fails the contract: {why}"


def test_a_form_may_be_checked_in_another_dtype() -> None:
    def in_float32_only(x: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        return right(x=x, **options) * (1 if x.dtype == torch.float32 else 3)

    there = Provider("there", lambda op: in_float32_only, checked_in=torch.float32)
    here = Provider("here", lambda op: in_float32_only)
    rows = rows_of(norm(forms=(there, here)))
    assert rows["there"]["note"] == "checked in float32"
    assert rows["there"]["ms"] > 0
    assert rows["here"]["reason"].startswith("fails the contract")
    assert rows["ours"]["peer"] == "there"


def test_plain_pytorch_is_timed_up_to_a_length() -> None:
    """In a longer case one part is checked, the last."""
    rows = rows_of(norm(plain_up_to=127), right=right, wrong=lambda **o: last_row_lost(right(**o)))
    assert rows["reference"]["reason"] == "left out: plain PyTorch runs up to 127 tokens here"
    assert (rows["right"]["ms"] > 0, rows["right"]["checked"]) == (True, "1 of 64 parts")
    assert rows["wrong"]["reason"].startswith("fails the contract: result 0")
    assert rows_of(norm(backward=True, plain_up_to=127))["ours"]["ms"] > 0
    reference = rows_of(norm(plain_up_to=128))["reference"]
    assert (reference["ms"] > 0, reference["checked"]) == (True, "16 of 64 parts")


def test_a_sample_has_the_first_and_the_last_part_at_their_places() -> None:
    assert [spread(4, 9), spread(9, 1), spread(9, 3)] == [[0, 1, 2, 3], [8], [0, 4, 8]]
    case = norm()
    sample = Sample(case, case.call("cpu", torch.float32).arguments)
    sample.chosen = [0, 63]
    x = torch.arange(128.0).view(1, 128, 1)
    assert sample.cut("x", x).flatten().tolist() == [0, 1, 126, 127]
    assert sample.cut("weight", x) is x
    assert sample.put("result 0", sample.cut("x", x), x).sum() == 0 + 1 + 126 + 127


def test_every_shape_falls_into_equal_parts() -> None:
    for case in LARGE.values():
        Sample(case, case.call("meta", torch.bfloat16).arguments)
    case = norm(split=Split(48, {"x": 1}, (1,)))
    with pytest.raises(ValueError, match=r"norm, small does not fall into 48 equal parts: \[128\]"):
        Sample(case, case.call("meta", torch.bfloat16).arguments)
