"""The kernels of prefix_attention: tiles, splits, lengths on the device, offsets, the operator."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    check_capture,
    check_contract,
    device,
    every_config,
    on_device,
)
from tests.footprint import largest_tensor
from tests.interpreter import fenced_empty, lazily, poisoned_empty
from tests.model.test_no_waiting import NoWaiting
from tests.ops.prefix_attention.common import make, naive
from tvkernels import prefix_attention, use_backend

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU"),
]
OP = import_module("tvkernels.prefix_attention.op")
# several tiles of rows; with splits of 64 keys several of the prefix and of a tail
LARGE: dict[str, Any] = {
    "lengths": (100, 13), "n": 13, "m": 130, "capacity": 120, "nheads": 5, "nkvheads": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    with use_backend("triton"), poisoned_empty():
        yield


@pytest.fixture
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A split of 32 keys for each 64 rows of a batch row."""
    monkeypatch.setattr(engine(), "KEYS", 32)


def engine() -> Any:
    return import_module("tvkernels.prefix_attention.kernel")


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [True, False])
def test_many_tiles_and_splits(dtype: torch.dtype, shared: bool) -> None:
    check_contract(prefix_attention, naive, make(**LARGE, shared=shared, garbage=1e4), dtype=dtype)


@pytest.mark.parametrize("headdim", [1, 80, 256])
def test_every_headdim(headdim: int) -> None:
    inputs = make((7,), nheads=2, nkvheads=1, headdim=headdim, garbage=1e4)
    check_contract(prefix_attention, naive, inputs)


@pytest.mark.parametrize("far", [-30.0, 30.0])
def test_logits_far_from_zero(far: float) -> None:
    """Logits of about 200, whose exp2 overflows float32, and which are far from a masked key's."""
    inputs = make(garbage=1e4)
    inputs["q"], inputs["key"] = inputs["q"].abs() + 1, inputs["key"] + far
    check_contract(prefix_attention, naive, inputs)


@pytest.mark.parametrize(
    "config", every_config("tvkernels.prefix_attention.attend_kernel:attend_kernel"), ids=str
)
def test_every_configuration(config: Any) -> None:
    from tvkernels.core.tune import forced

    with forced(config):
        check_contract(
            prefix_attention, naive, make((40, 25), headdim=64, garbage=1e4, capacity=40)
        )


@pytest.mark.usefixtures("short_splits")
def test_the_capacity_and_the_other_rows_change_no_bit() -> None:
    """Of several splits, some of which lie behind a row's length; float32, where each bit counts."""
    inputs = make(**LARGE)
    want = prefix_attention(**inputs)
    views = {name: inputs[name][:, :101] for name in ("key", "value")}
    assert torch.equal(prefix_attention(**{**inputs, **views}), want)
    turned = {name: x.flip(0) for name, x in inputs.items() if name != "prefix"}
    assert torch.equal(prefix_attention(**{**inputs, **turned}).flip(0), want)
    alone = {name: x[1:] for name, x in inputs.items() if name != "prefix"}
    assert torch.equal(prefix_attention(**{**inputs, **alone}), want[1:])


@pytest.mark.usefixtures("short_splits")
def test_nothing_beside_a_tensor_is_read_or_written() -> None:
    """Inputs, the result and intermediate tensors are fenced; strides are odd, tiles not full."""
    inputs = make((50, 20), n=5, m=70, capacity=60, headdim=12, garbage=1e4)
    with fenced_empty():
        inputs = {
            name: tuple(torch.empty_like(y).copy_(y) for y in x)
            if name == "prefix"
            else torch.empty_like(x).copy_(x)
            for name, x in inputs.items()
        }
        check_contract(prefix_attention, naive, inputs)


def test_lengths_on_a_device_that_lead_too_far_are_cut() -> None:
    """The host cannot check lengths on a device, so the kernels clamp them to the capacity."""
    inputs = make((17, 17, 14))
    tensors = [inputs[name] for name in ("q", "key", "value")]
    want = prefix_attention(**inputs)
    with fenced_empty():
        tensors = [torch.empty_like(x).copy_(x) for x in tensors]
        lengths = on_device(torch.tensor([400, 17, 14]))
        assert torch.equal(OP._attend(*tensors, lengths, *inputs["prefix"], 8**-0.5), want)


@pytest.mark.usefixtures("short_splits")
def test_keys_of_minus_infinity_get_nothing() -> None:
    """A split may hold nothing else, and then its maximum is minus infinity."""
    inputs = make((5,), m=128, n=1)
    inputs["q"] = inputs["q"].abs() + 0.1
    key, value = inputs["prefix"]
    want = prefix_attention(**{**inputs, "prefix": (key[:, 64:], value[:, 64:])})
    key[:, :64] = -torch.inf
    torch.testing.assert_close(prefix_attention(**inputs), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_bitwise_equal(dtype: torch.dtype) -> None:
    inputs = make(dtype=dtype)
    assert torch.equal(prefix_attention(**inputs), prefix_attention(**inputs))


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        *((name, axis) for name in ("q", "key", "value") for axis in (0, 1, 2)),
        *(("prefix key", 0), ("prefix value", 1)),
    ],
)
def test_offsets_past_32_bits(name: str, axis: int) -> None:
    """The stride itself fits 32 bits, so that only the product with the index does not."""
    n = 3 if (name, axis) == ("q", 1) else 1
    inputs = make((3, 3, 3), n=n, m=3, capacity=3, nheads=3, nkvheads=3, shared=False)
    inputs = {k: x if k in ("lengths", "prefix") else x.bfloat16() for k, x in inputs.items()}
    inputs["prefix"] = [x.bfloat16() for x in inputs["prefix"]]
    want = prefix_attention(**inputs)
    where, at = (inputs["prefix"], name.endswith("value")) if " " in name else (inputs, name)
    near = where[at]
    strides = list(near.stride())
    strides[axis] = 3 * 2**30 // 2
    far = lazily(tuple(near.shape), tuple(strides), torch.bfloat16, device()).copy_(near)
    where[at] = far
    assert_alike(prefix_attention(**inputs), want, rounding=COMPILED)


@pytest.mark.parametrize("prefix", [True, False])
def test_the_operator_is_sound(prefix: bool) -> None:
    inputs = make((4, 2), n=1, m=5, nheads=2)
    pair = inputs["prefix"] if prefix else (None, None)
    tensors = [inputs[name] for name in ("q", "key", "value", "lengths")]
    torch.library.opcheck(OP._attend.op, (*tensors, *pair, 0.3))


def test_a_head_that_no_registers_hold() -> None:
    sentence = "prefix_attention: Triton has headdim up to 256, got 272; use_backend"
    with pytest.raises(NotImplementedError, match=sentence):
        prefix_attention(**make(headdim=272))


@pytest.mark.parametrize(
    ("n", "keys", "splits"), [(1, 80_000, 79), (60, 80_000, 16), (8192, 80_000, 1), (1, 700, 1)]
)
def test_splits_depend_on_n_and_the_keys_alone(n: int, keys: int, splits: int) -> None:
    """Many rows make long splits, so that what they write stays small beside the keys."""
    assert engine().splits(n * 5, keys) == (splits, 1024 * (-(n * 5) // 64) * -1)


def launch(inputs: dict[str, Any]) -> Any:
    """The launcher, below the operator, where a dispatch mode sees tensors."""
    tensors = [inputs[name] for name in ("q", "key", "value", "lengths")]
    return lambda: engine().attend(*tensors, *inputs["prefix"], 0.3)


def test_memory_is_small_beside_the_keys() -> None:
    inputs = make((20, 20), n=20, m=4096, capacity=20)
    # times 4: the interpreter copies storages as bytes, so it allocates 4 elements for each float32
    keys = inputs["prefix"][0].numel()
    assert largest_tensor(launch(inputs)) <= 4 * keys < inputs["q"].numel() // 8 * 4096


def test_nothing_waits_for_the_device() -> None:
    with NoWaiting():
        launch(make())()


@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    inputs = make(**LARGE, dtype=torch.bfloat16)
    check_capture(lambda: prefix_attention(**inputs))
