"""Transformers' omni class, whose language model is a patched nemotron_h: images, video, tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import tvkernels
from tests.contract import device

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
# The class came with 5.19. Its video path raises before 5.24.
PATHS = ["images", "video"] if VERSION >= (5, 24) else ["images"] if VERSION >= (5, 19) else []
IMAGE = 18
CLOSE = 5e-5
TEXT = {
    "model_type": "nemotron_h",
    "vocab_size": 61,
    "hidden_size": 32,
    "hybrid_override_pattern": "ME*M-",
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 2,
    "chunk_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "moe_shared_expert_intermediate_size": 20,
    "eos_token_id": None,
}
VISION = {
    "model_type": "radio",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
    "max_img_size": 64,
    "num_cls_tokens": 2,
    "num_registers": 1,
    "video_temporal_patch_size": 2,
}


def build() -> torch.nn.Module:
    """Random weights; half of the time steps lie below the least that transformers lets pass."""
    config = transformers.NemotronH_Omni_Reasoning_V3_Config(
        text_config=TEXT,
        vision_config=VISION,
        projector_hidden_size=24,
        vision_hidden_size=16,
        image_token_id=IMAGE,
    )
    model = transformers.NemotronH_Omni_Reasoning_V3(config).eval()
    made = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                parameter.uniform_(-9, 0.5, generator=made)
            elif name.endswith(("A_log", ".D")):
                parameter.uniform_(-0.5, 1.5, generator=made)
            elif parameter.ndim == 1:
                parameter.normal_(1.0, 0.2, generator=made)
            else:
                scale = 1.5 * parameter[0].numel() ** -0.5
                parameter.normal_(0, scale, generator=made)
    return model.to(device())


def request(path: str) -> dict[str, Any]:
    """A prompt around four frames of 4 x 4 patches: as images, or as two tubelets."""
    made = torch.Generator().manual_seed(8)
    visual = (4 if path == "images" else 2) * [IMAGE] * 4
    ids = torch.tensor([[1, 5, 7, *visual, 9, 11, 30]])
    if path == "images":
        pixels = torch.randn(4 * 16, 3 * 8 * 8, generator=made)
        grid = torch.tensor([[4, 4]] * 4)
        frames = {"pixel_values": pixels, "image_grid_hw": grid}
    else:
        frames = {"pixel_values_videos": torch.randn(1, 2, 6, 32, 32, generator=made)}
    return {name: value.to(device()) for name, value in {"input_ids": ids, **frames}.items()}


@pytest.mark.parametrize("clamped", [True, False], ids=["as shipped", "without a clamp"])
@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_logits_and_tokens_patched_and_not(path, clamped, calls):
    """Transformers clamps time steps in prefill, whatever the config says; checkpoints do not."""
    model, asked = build(), request(path)
    if not clamped:
        for module in model.modules():
            if hasattr(module, "time_step_limit"):
                module.time_step_limit = (0.0, float("inf"))

    def run():
        made = model.generate(**asked, max_new_tokens=6, do_sample=False, use_cache=True)
        return model(**asked, use_cache=False).logits, made

    logits, tokens = run()
    assert not calls
    with tvkernels.patch_transformers("nemotron_h") as patch:
        ours, our_tokens = run()
    assert not patch.fallbacks
    assert calls["mamba_chunk_scan_combined"] == calls["causal_conv1d_fn"] == 2 * 2
    assert calls["selective_state_update"] == calls["causal_conv1d_update"] == 2 * 5
    assert torch.equal(our_tokens, tokens)
    error = (ours - logits).norm() / logits.norm()
    assert error < CLOSE, f"relative error {error:.2e}"


@pytest.mark.skipif(not PATHS, reason="transformers has no such class before 5.19")
@torch.no_grad()
def test_the_clamp_matters_here():
    """So that the two tests above would see a patch that clamps otherwise."""
    model, asked = build(), request("images")
    logits = model(**asked, use_cache=False).logits
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    free = model(**asked, use_cache=False).logits
    assert (free - logits).norm() > 100 * CLOSE * logits.norm()
