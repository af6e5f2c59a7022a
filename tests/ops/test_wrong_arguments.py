"""Every argument of every op, replaced by what it cannot be: one sentence that names op and argument."""

from __future__ import annotations

import inspect
import re
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
    [
        "mamba_chunk_scan_combined",
        "mamba2_decode_step",
        "mamba_split_conv1d_scan_combined",
        "replay_state_update",
    ],
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


def sparse(x):
    return x.reshape(x.shape or (1,)).to_sparse()


def nested(x):
    return torch.nested.nested_tensor([x.reshape(-1), x.reshape(-1)[:1]])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("op", [*CASES, *INDICES])
def test_a_tensor_that_is_not_dense_is_one_sentence(op):
    right = INDICES[op] if op in INDICES else inputs_of(op)
    says = r"\w+" if op == "mamba_split_conv1d_scan_combined" else op
    for name in [name for name, value in right.items() if isinstance(value, torch.Tensor)]:
        kinds = {sparse: "layout sparse_coo", nested: "a nested one"}
        for make, got in kinds.items():
            rule = rf"^{says}: {own(name)} must be a dense tensor, got {got}; "
            with pytest.raises(ValueError, match=rule):
                getattr(tvkernels, op)(**{**right, name: make(right[name])})


# every argument that an op writes to
WRITTEN = {
    "causal_conv1d_fn": ["final_states_out"],
    "causal_conv1d_update": ["conv_state"],
    "mamba2_decode_step": ["conv_state", "ssm_state"],
    "replay_flush": ["state", "written"],
    "replay_state_update": ["state", "pending_x", "pending_dt", "pending_B", "written"],
    "selective_state_update": ["state"],
}


def written_inputs(op):
    made = inputs_of(op)
    if op == "causal_conv1d_fn":
        made |= {"final_states_out": torch.zeros(1, 6, 3), "return_final_states": True}
    return made


def test_these_are_the_arguments_that_kernels_write_to():
    names = [name for name in torch._C._dispatch_get_all_op_names() if "tvkernels::" in name]
    # other tests of the same process register operators of their own
    operators = [name for name in names if "::test_" not in name]
    found = {
        (name.removeprefix("tvkernels::"), argument.name)
        for name in operators
        for argument in torch._C._get_schema(name, "").arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    # the convolution of whole sequences copies its final states to where they are wanted
    assert found == {(op, x) for op in WRITTEN for x in WRITTEN[op] if op != "causal_conv1d_fn"}


@pytest.mark.parametrize("name", ["reference", "triton"])
@pytest.mark.parametrize(("op", "argument"), [(op, x) for op in WRITTEN for x in WRITTEN[op]])
def test_a_write_into_overlapping_memory_is_refused(op, argument, name):
    right = written_inputs(op)
    shape = right[argument].shape
    begins = rf"^{op}: {argument} must have no two elements at one place in memory .* got shape"
    shared = [
        torch.zeros(shape[:-1])[..., None].expand(shape),
        torch.zeros(shape[0], 1, *shape[2:]).expand(shape),
        # windows that slide over a line
        torch.zeros(2000).as_strided(shape, [200] * (len(shape) - 2) + [1, 1]),
    ]
    with tvkernels.use_backend(name):
        for x in shared:
            with pytest.raises(ValueError, match=begins):
                getattr(tvkernels, op)(**{**right, argument: x})


@pytest.mark.parametrize(("op", "argument"), [(op, x) for op in WRITTEN for x in WRITTEN[op]])
def test_every_view_that_does_not_overlap_is_written(op, argument):
    right = written_inputs(op)
    plain = right[argument].clone()
    out = getattr(tvkernels, op)(**{**right, argument: plain})
    whole = plain.new_zeros([2 * size + 1 for size in reversed(plain.shape)])
    view = whole.permute(*reversed(range(plain.ndim)))[
        tuple(slice(1, None, 2) for _ in plain.shape)
    ]
    assert not view.is_contiguous()
    # the first call has written to the other state, too
    right = written_inputs(op)
    view.copy_(right[argument])
    got = getattr(tvkernels, op)(**{**right, argument: view})
    torch.testing.assert_close((got, view), (out, plain))


def test_a_leaf_that_requires_gradients_is_not_written_while_they_are_recorded():
    right = written_inputs("causal_conv1d_fn")
    leaf = right["final_states_out"].requires_grad_()
    for x in (leaf, leaf[:, :6]):
        with pytest.raises(ValueError, match="final_states_out must not be a leaf that requires"):
            tvkernels.causal_conv1d_fn(**{**right, "final_states_out": x})
    with torch.no_grad():
        tvkernels.causal_conv1d_fn(**right)
    # a place for states may be used again, though autograd has recorded its first use
    room = torch.zeros(1, 6, 3)
    x = right["x"].requires_grad_()
    for _ in range(2):
        tvkernels.causal_conv1d_fn(**{**right, "final_states_out": room})
    assert torch.equal(room, x[..., -3:])


@pytest.mark.parametrize(
    ("op", "argument"),
    [
        ("causal_conv1d_update", "conv_state_indices"),
        ("mamba2_decode_step", "state_batch_indices"),
        ("replay_flush", "state_batch_indices"),
        ("replay_state_update", "state_batch_indices"),
        ("selective_state_update", "state_batch_indices"),
    ],
)
def test_no_row_of_a_state_is_written_twice(op, argument):
    given = inputs_of(op, 3)
    function = getattr(tvkernels, op)
    with pytest.raises(ValueError, match=rf"^{op}: {argument} must name each row at most once"):
        function(**{**given, argument: torch.tensor([2, 0, 2])})
    # padding may stand there as often as it likes
    function(**{**given, argument: torch.tensor([-1, 0, -1])})


@pytest.mark.parametrize("device", ["nope", "cpu:x", -1, 9999])
def test_a_device_that_is_not_there(device):
    rule = "uniform_topk: device must be a device that PyTorch can use here, or None, got "
    with pytest.raises(ValueError, match=f"^{re.escape(rule + repr(device))}$"):
        tvkernels.uniform_topk(5, 2, device)


@pytest.mark.parametrize("kept", [[1, 1], [[0, 2], [3, 3]], [2, 0, 2]])
def test_an_index_is_kept_once(kept):
    with pytest.raises(
        ValueError, match=r"dropped_indices: kept must hold distinct indices, got \d twice"
    ):
        tvkernels.dropped_indices(torch.tensor(kept), 4)
    assert tvkernels.dropped_indices(torch.tensor([3, 0]), 4).tolist() == [1, 2]
