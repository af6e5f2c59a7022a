"""A fingerprint is that of the weights' bits, whatever holds them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from timeviper_fast.model import fingerprint as module
from timeviper_fast.model.fingerprint import fingerprint, numbers_of, tensor_digests


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]
)
def test_a_digest_is_the_weighted_sum_of_the_bits(dtype, monkeypatch):
    """In pieces of any size, and of a view whose memory has gaps."""
    x = (torch.randn(7, 5, generator=torch.Generator().manual_seed(3)) * 90).to(dtype)
    size = x.element_size()
    signed = size > 1
    raw = x.contiguous().view(torch.uint8).numpy().tobytes()
    numbers = [
        int.from_bytes(raw[i : i + size], "little", signed=signed) for i in range(0, len(raw), size)
    ]
    want = sum(bits * (2 * i + 1) for i, bits in enumerate(numbers)) % 2**64
    gaps = torch.empty(7, 10, dtype=dtype)[:, ::2].copy_(x)
    for piece in (1, 4, 1 << 22):
        monkeypatch.setattr(module, "_PIECES", {"cpu": piece})
        assert tensor_digests({"x": x, "y": gaps}) == {"x": want, "y": want}


def test_every_bit_name_shape_and_fact_counts():
    x = torch.randn(6, 4)
    flipped = x.clone()
    flipped[3, 2] = torch.nextafter(flipped[3, 2], torch.tensor(9e9))
    swapped = x.clone()
    swapped[[1, 2]] = x[[2, 1]]
    others = [{"x": flipped}, {"x": swapped}, {"y": x}, {"x": x.view(4, 6)}, {"x": -x}]
    others += [{"x": x.view(torch.int32)}]
    prints = {fingerprint(each, "fact") for each in ({"x": x}, *others)}
    assert len(prints | {fingerprint({"x": x})}) == 8
    assert fingerprint({"x": x.clone()}, "fact") in prints


def test_tied_weights_are_read_once_and_named_twice():
    tied, apart = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    tied[1].weight = tied[0].weight
    apart.load_state_dict(tied.state_dict())
    assert fingerprint(numbers_of(tied)) == fingerprint(numbers_of(apart))
    assert set(numbers_of(tied)) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_training_changes_it():
    model = nn.Linear(3, 3)
    before = fingerprint(numbers_of(model))
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert fingerprint(numbers_of(model)) != before
    assert tensor_digests({}) == {}
