"""prefix_attention against a naive float64 form, and the laws of prefix, capacity and batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contract import check_contract, compilers
from tests.footprint import largest_tensor
from tests.ops.common import DTYPES
from tests.ops.prefix_attention.common import REFERENCE, make, naive
from tvkernels import prefix_attention


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n": 1, "headdim": 12},
        {"nkvheads": 4, "m": 0},
        {"shared": False, "nkvheads": 1, "m": 90},
        {"lengths": (14,), "n": 14, "capacity": 14},
    ],
    ids=str,
)
def test_contract(dtype: torch.dtype, shape: dict[str, Any]) -> None:
    check_contract(prefix_attention, naive, make(**shape, garbage=1e4), dtype=dtype)


@pytest.mark.usefixtures("backend")
def test_layouts_scale_and_short_lengths() -> None:
    """No two tensors have a stride in common."""
    inputs = {**make(), "scale": 0.9}
    inputs["q"] = torch.randn(8, 4, 3, 3).permute(2, 3, 1, 0)
    inputs["key"] = torch.randn(3, 2, 17, 25)[..., :24:3].transpose(1, 2)
    inputs["value"] = torch.randn(3, 8, 1, 68)[..., ::4].permute(0, 3, 2, 1).expand(3, 17, 2, 8)
    inputs["prefix"] = (torch.randn(74, 1, 2, 8)[::2].transpose(0, 1), inputs["prefix"][1])
    inputs["lengths"] = inputs["lengths"].int()
    check_contract(prefix_attention, naive, inputs)


@pytest.mark.usefixtures("backend")
def test_what_lies_behind_the_lengths_is_never_read() -> None:
    inputs = make()
    want = prefix_attention(**make(garbage=0.0))
    assert torch.equal(prefix_attention(**inputs), want)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("blocks", [16, 512])
def test_the_capacity_changes_no_bit(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REFERENCE, "KEY_BLOCK", blocks)
    inputs = make(capacity=70)
    want = prefix_attention(**inputs)
    for capacity in (14, 33):
        views = {name: inputs[name][:, :capacity] for name in ("key", "value")}
        assert torch.equal(prefix_attention(**{**inputs, **views}), want)
        compact = {name: x.contiguous() for name, x in views.items()}
        assert torch.equal(prefix_attention(**{**inputs, **compact}), want)


@pytest.mark.usefixtures("backend")
def test_no_prefix_is_an_empty_one() -> None:
    inputs = make(m=0)
    assert torch.equal(prefix_attention(**{**inputs, "prefix": None}), prefix_attention(**inputs))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("blocks", [16, 512])
def test_a_prefix_is_the_front_of_every_tail(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REFERENCE, "KEY_BLOCK", blocks)
    inputs = make()
    shared = prefix_attention(**inputs)
    whole = dict(inputs)
    for name, x in zip(("key", "value"), inputs["prefix"]):
        whole[name] = torch.cat([x.expand(3, -1, -1, -1), inputs[name]], 1)
    whole |= {"prefix": None, "lengths": inputs["lengths"] + 37}
    torch.testing.assert_close(prefix_attention(**whole), shared)
    own = tuple(x.repeat(3, 1, 1, 1) for x in inputs["prefix"])
    torch.testing.assert_close(prefix_attention(**{**inputs, "prefix": own}), shared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_one_block(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the map of text and video, nor a copy of the video's keys, is ever whole."""
    monkeypatch.setattr(REFERENCE, "MAP_BLOCK", 1 << 14)
    monkeypatch.setattr(REFERENCE, "KEY_BLOCK", 64)
    inputs = make((60, 60), n=60, m=4096, capacity=60, dtype=dtype)
    with torch.no_grad():
        assert largest_tensor(lambda: prefix_attention(**inputs)) <= 1 << 14


@pytest.mark.usefixtures("backend")
def test_compiles_whole() -> None:
    inputs = make()
    want = prefix_attention(**inputs)
    for compiler in compilers():
        torch._dynamo.reset()
        mine = torch.compile(prefix_attention, fullgraph=True, backend=compiler)(**inputs)
        torch.testing.assert_close(mine, want)


def test_meta_tensors_carry_shapes() -> None:
    inputs = {k: v.to("meta", torch.bfloat16) for k, v in make().items() if k in ("q", "key")}
    given = {**inputs, "value": inputs["key"], "lengths": make()["lengths"].to("meta")}
    out = prefix_attention(**given)
    assert (out.shape, out.dtype) == ((3, 3, 4, 8), torch.bfloat16)
