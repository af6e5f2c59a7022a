"""tome_merge against VideoChat-Flash's merges of clips and images: slots and sizes exact."""

from __future__ import annotations

import pytest
import torch

from tests.contract import TRITON, on_device
from tests.goldens import golden, manifest
from tvkernels import tome_merge

REFERENCE = [pytest.param("reference", marks=pytest.mark.reference)]
LONG = [pytest.param("triton", marks=[pytest.mark.triton, pytest.mark.long])] if TRITON else []


@pytest.mark.parametrize("name", ["vcf_merge_784", "vcf_merge_1024", "vcf_merge_196"])
def test_slots_are_those_of_videochat_flash(backend: str, name: str) -> None:
    check(name)


# the interpreter takes ten seconds for 3,136 tokens
@pytest.mark.parametrize("backend", REFERENCE + LONG, indirect=True)
def test_slots_at_448_pixels(backend: str) -> None:
    check("vcf_merge_3136")


def check(name: str) -> None:
    tensors, about = on_device(golden(name)), manifest(name)["config"]
    features = tensors["features"]
    assert features.shape[1] == about["tokens"]
    merged = tome_merge(features, about["target"], num_heads=about["merge_heads"])
    assert torch.equal(merged.assignment, tensors["slot_of_source"])
    assert torch.equal(merged.sizes, tensors["sizes"].int())
    torch.testing.assert_close(merged.tokens, tensors["merged"], rtol=0, atol=1e-5)
