"""tome_merge against VideoChat-Flash's merges of clips and images: slots and sizes exact."""

from __future__ import annotations

import pytest
import torch

from tests.contract import on_device
from tests.goldens import golden, manifest
from tvkernels import tome_merge


@pytest.mark.parametrize(
    "name", ["vcf_merge_784", "vcf_merge_1024", "vcf_merge_3136", "vcf_merge_196"]
)
def test_slots_are_those_of_videochat_flash(backend: str, name: str) -> None:
    tensors, about = on_device(golden(name)), manifest(name)["config"]
    features = tensors["features"]
    assert features.shape[1] == about["tokens"]
    merged = tome_merge(features, about["target"], num_heads=about["merge_heads"])
    assert torch.equal(merged.assignment, tensors["slot_of_source"])
    assert torch.equal(merged.sizes, tensors["sizes"].int())
    torch.testing.assert_close(merged.tokens, tensors["merged"], rtol=0, atol=1e-5)
