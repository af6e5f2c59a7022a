"""Every argument of every op, replaced by what it cannot be: one sentence that names op and argument."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import tvkernels
from tests.ops.test_every_op import CASES, inputs_of

INDICES: dict[str, dict[str, Any]] = {
    "uniform_topk": {"length": 5, "keep": 2, "device": None},
    "dropped_indices": {"kept": torch.tensor([1]), "length": 3},
}
# by what its annotation says, an argument cannot be any of these
WRONG = {
    "Tensor": [None, [1.0], torch.zeros(2, 3).numpy(), "four", 2.5, 3, True, {}],
    "bool": [None, [True], "True", 2.5, 3, torch.ones(2)],
    "float": [None, [1.0], "four", True, {}, torch.ones(2), torch.ones(2).numpy()],
    "int": [None, [4], "four", 4.0, True, torch.ones(2), torch.tensor(4)],
    "str": [b"silu", "gelu", 3, True, ["silu"], torch.ones(2)],
}


def kind_of(annotation: str) -> str:
    first = annotation.split("|")[0].strip().removeprefix("torch.")
    return first if first in WRONG else ""


def own(argument: str) -> str:
    """An argument of the mixer, or its name in the part that it goes to."""
    return f"({argument}|{argument.removeprefix('conv1d_')})"


def all_arguments() -> list[Any]:
    found = []
    for op in [*CASES, *INDICES]:
        for name, parameter in inspect.signature(getattr(tvkernels, op)).parameters.items():
            kind = kind_of(str(parameter.annotation))
            nullable = "None" in str(parameter.annotation) or parameter.default is None
            # the mixer runs without a bias of dt
            nullable |= (op, name) == ("mamba_split_conv1d_scan_combined", "dt_bias")
            values = [v for v in WRONG.get(kind, []) if not (v is None and nullable)]
            found += [pytest.param(op, name, values, id=f"{op}-{name}")] if values else []
    return found


@pytest.mark.parametrize(("op", "argument", "values"), all_arguments())
def test_a_wrong_kind_is_one_sentence(op, argument, values):
    function = getattr(tvkernels, op)
    # the parts of the mixer check what only they know, in their own name
    says = r"\w+" if op == "mamba_split_conv1d_scan_combined" else op
    right = INDICES[op] if op in INDICES else inputs_of(op)
    for value in values:
        if argument == "keep" and isinstance(value, list):
            continue
        copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in right.items()}
        with pytest.raises(
            ValueError, match=rf"^{says}: (\w+ )?{own(argument)}\b.* must .*, got "
        ) as raised:
            function(**{**copies, argument: value})
        # a tensor's elements are no part of a sentence
        assert len(str(raised.value)) < 250


@pytest.mark.parametrize("op", [op for op in CASES if op != "relu2"])
def test_each_tensor_on_another_device_is_named(op):
    right = inputs_of(op)
    tensors = [name for name, value in right.items() if isinstance(value, torch.Tensor)]
    for name in tensors:
        given = {**right, name: right[name].to("meta")}
        if len(tensors) == 1 or name == "cu_seqlens":
            continue
        with pytest.raises(ValueError, match=rf"^{op}: \w+ must lie on the device of"):
            getattr(tvkernels, op)(**given)


@pytest.mark.parametrize("value", [None, 3, (1.0,), (1.0, "2"), "ab", (2.0, 1.0), (True, 2.0)])
@pytest.mark.parametrize(
    "op",
    ["mamba_chunk_scan_combined", "mamba2_decode_step", "mamba_split_conv1d_scan_combined"],
)
def test_limits_are_two_numbers_in_order(op, value):
    with pytest.raises(ValueError, match=rf"^{op}: dt_limit must be \(least, greatest\)"):
        getattr(tvkernels, op)(**{**inputs_of(op), "dt_limit": value})


def test_pairs_of_a_projection():
    right = inputs_of("attention_topk_hidden")
    weight, (cos, _) = right["norm_weight"], right["rope"]
    for argument, value in [
        ("norm_weight", (weight,)),
        ("norm_weight", (weight, "1e-6")),
        ("norm_weight", (weight, -1.0)),
        ("rope", cos),
        ("rope", (cos,)),
        ("rope", 3),
    ]:
        with pytest.raises(ValueError, match=rf"^attention_topk_hidden: {argument} must "):
            tvkernels.attention_topk_hidden(**{**right, argument: value})
