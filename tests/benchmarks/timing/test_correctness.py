"""Who is wrong gets no number: values, gradients, integers, at the shape that is timed."""

from __future__ import annotations

import pytest
import torch

import tvkernels
from benchmarks.timing.bench import Form
from benchmarks.timing.measure import Lab
from benchmarks.timing.peers import Provider
from tests.benchmarks.timing.lab import benches, lab_with, right, rows_of, small


def scaled(**options: torch.Tensor) -> torch.Tensor:
    return right(**options) * 1.1


def last_row_lost(**options: torch.Tensor) -> torch.Tensor:
    y = right(**options)
    return torch.cat([y[:, :-1], torch.zeros_like(y[:, -1:])], 1)


def infinite_off_the_parts(**options: torch.Tensor) -> torch.Tensor:
    """Row 3 lies in part 1 of 64, which is not compared."""
    y = right(**options).clone()
    y[:, 3] = float("inf")
    return y


def two_results(**options: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return right(**options), right(**options)


def broken(**options: torch.Tensor) -> torch.Tensor:
    raise KeyError("a\nlong story")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (scaled, "fails the contract: result 0: L2 error 0.1, may be 0.00"),
        (last_row_lost, "fails the contract: result 0"),
        (infinite_off_the_parts, "fails the contract: not finite: 0"),
        (two_results, "fails the contract: it gives 2 results, not 1"),
        (broken, "KeyError: 'a\\nlong story'"),
    ],
)
def test_who_is_wrong_gets_no_number(wrong: object, why: str) -> None:
    rows = rows_of(lab_with(wrong=wrong, right=right), small())
    assert rows["wrong"]["reason"].startswith(why)
    assert "ms" not in rows["wrong"]
    assert rows["right"]["ms"] > 0
    assert rows["ours"]["checked"] == "16 of 64 parts"


class HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, weight: torch.Tensor) -> torch.Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad / 2


@pytest.mark.parametrize("leaf", ["weight", "x"])
def test_a_wrong_gradient_gets_no_number_though_the_values_are_right(leaf: str) -> None:
    """The weight's is a sum over all rows; the rows that are not compared have cotangent 0."""

    def wrong(**options: torch.Tensor) -> torch.Tensor:
        return right(**{**options, leaf: HalfGradient.apply(options[leaf])})

    rows = rows_of(lab_with(wrong=wrong), small(backward=True))
    assert rows["wrong"]["reason"].startswith(f"fails the contract: d{leaf}: ")
    assert rows["ours"]["ms"] > 0
    assert rows["reference"]["error_over_bound"] < 0.6


@pytest.mark.parametrize("name", ["coarse", "ours"])
def test_a_coarse_result_gets_no_number_whoever_made_it(name: str) -> None:
    lab = lab_with()
    lab.providers[0] = Provider(name, lambda op: lambda **options: right(**options) * 1.01)
    row = rows_of(lab, small())[name]
    assert row["reason"].startswith("fails the contract")
    assert "ms" not in row


def test_integers_must_be_exact_unless_a_judge_says_otherwise() -> None:
    def other_slots(**options: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens, sizes, slots = tvkernels.tome_merge(**options)
        return tokens, sizes, slots.flip(1)

    merge = next(benches("tome")[0].cases(small=True))
    assert "integers differ" in rows_of(lab_with(other=other_slots), merge)["other"]["reason"]

    def first_kept(q: torch.Tensor, k: torch.Tensor, keep: int, span: object) -> object:
        every = torch.arange(k.shape[1])[None]
        scores = tvkernels.attention_topk(q, k, keep, span).scores
        return every[:, :keep], every[:, keep:], scores

    def unordered(**options: torch.Tensor) -> object:
        kept, dropped, scores = tvkernels.attention_topk(**options)
        return kept.flip(1), dropped, scores

    def twice(keep: int, **options: torch.Tensor) -> object:
        _, dropped, scores = tvkernels.attention_topk(keep=keep, **options)
        return torch.sort(dropped[:, :keep]).values, dropped, scores

    select = next(benches("attention_topk")[0].cases(small=True))
    rows = rows_of(lab_with(first=first_kept, unordered=unordered, twice=twice), select)
    assert "dropped a token above" in rows["first"]["reason"]
    assert "do not ascend" in rows["unordered"]["reason"]
    assert "each token once" in rows["twice"]["reason"]


def test_a_form_may_be_checked_in_another_dtype() -> None:
    def in_float32_only(x: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        return right(x=x, **options) * (1 if x.dtype == torch.float32 else 3)

    there, here = Form(in_float32_only, checked_in=torch.float32), Form(in_float32_only)
    rows = rows_of(Lab(gpu=False), small(forms={"there": there, "here": here}))
    assert rows["there"]["note"] == "checked in float32"
    assert rows["there"]["ms"] > 0
    assert rows["here"]["reason"].startswith("fails the contract")
    assert rows["ours"]["peer"] == "there"


@pytest.mark.parametrize("backward", [False, True])
def test_a_form_may_be_given_what_a_model_makes_once(backward: bool) -> None:
    def of_eps(smallest: float, **options: torch.Tensor) -> torch.Tensor:
        return right(eps=smallest, **options)

    def before(arguments: dict) -> dict:
        rest = {name: x for name, x in arguments.items() if name != "eps"}
        return rest | {"smallest": arguments["eps"]}

    case = small(backward, forms={"other words": Form(of_eps, before=before)})
    assert rows_of(Lab(gpu=False), case)["other words"]["ms"] > 0


def test_plain_pytorch_is_timed_up_to_a_length() -> None:
    """Beyond, one part is checked: the last."""
    lab = lab_with(right=right, wrong=last_row_lost)
    rows = rows_of(lab, small(plain_up_to=127))
    reason = "left out: plain PyTorch runs up to 127 tokens here"
    assert rows["reference"] == {"case": "norm, small", "provider": "reference", "reason": reason}
    assert rows["right"]["ms"] > 0
    assert rows["right"]["checked"] == "1 of 64 parts"
    assert rows["wrong"]["reason"].startswith("fails the contract: result 0")
    assert rows_of(lab, small(backward=True, plain_up_to=127))["ours"]["ms"] > 0
    rows = rows_of(lab, small(plain_up_to=128))
    assert rows["reference"]["ms"] > 0
    assert rows["reference"]["checked"] == "16 of 64 parts"
