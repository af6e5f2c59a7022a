"""DINOv2 against transformers' own, with registers, with the same random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from timeviper_fast.config import VisionConfig
from timeviper_fast.model.vision.dinov2 import DINOv2

SMALL = VisionConfig(
    kind="dinov2",
    image_size=30,
    patch_size=7,
    hidden_size=48,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=3,
    register_tokens=4,
)


def theirs() -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    model = transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(
            image_size=SMALL.image_size,
            patch_size=SMALL.patch_size,
            hidden_size=SMALL.hidden_size,
            mlp_ratio=4,
            num_hidden_layers=SMALL.num_hidden_layers,
            num_attention_heads=SMALL.num_attention_heads,
            num_register_tokens=SMALL.register_tokens,
        )
    ).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.6
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def our_weights(theirs: torch.nn.Module) -> dict[str, torch.Tensor]:
    """transformers' names to timm's, by hand. timm adds the class token's position to it."""
    # recent transformers: attention.q_proj; before: attention.attention.query
    older = {"attention.o_proj": "attention.output.dense"}
    for short, word in (("q", "query"), ("k", "key"), ("v", "value")):
        older[f"attention.{short}_proj"] = f"attention.attention.{word}"
    w = {}
    for name, value in theirs.state_dict().items():
        for new, old in older.items():
            name = name.replace(new, old)
        w[name] = value
    positions = w["embeddings.position_embeddings"]
    ours = {
        "cls_token": w["embeddings.cls_token"] + positions[:, :1],
        "reg_token": w["embeddings.register_tokens"],
        "pos_embed": positions[:, 1:],
    }
    for kind in ("weight", "bias"):
        ours[f"patch_embed.proj.{kind}"] = w[f"embeddings.patch_embeddings.projection.{kind}"]
    for i in range(SMALL.num_blocks):
        a, b = f"encoder.layer.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            parts = [w[f"{a}attention.attention.{x}.{kind}"] for x in ("query", "key", "value")]
            ours[f"{b}attn.qkv.{kind}"] = torch.cat(parts)
            ours[f"{b}attn.proj.{kind}"] = w[f"{a}attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                ours[f"{b}{name}.{kind}"] = w[f"{a}{name}.{kind}"]
        for number in (1, 2):
            ours[f"{b}ls{number}.weight"] = w[f"{a}layer_scale{number}.lambda1"]
    return ours


@torch.no_grad()
def test_equals_transformers() -> None:
    reference, model = theirs(), DINOv2(SMALL)
    model.load_state_dict(our_weights(reference))
    pixels = torch.randn(3, 3, 30, 30, generator=torch.Generator().manual_seed(1))
    states = reference(pixels[..., :28, :28], output_hidden_states=True).hidden_states
    want = states[-2][:, 1 + SMALL.register_tokens :]
    assert want.abs().max() > 1
    torch.testing.assert_close(model(pixels), want, rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_registers_and_at_another_size() -> None:
    model = DINOv2(replace(SMALL, register_tokens=0)).eval()
    assert model.reg_token is None
    assert model(torch.randn(2, 3, 30, 30)).shape == (2, 16, 48)
    model.set_image_size(42)
    assert model(torch.randn(2, 3, 42, 42)).shape == (2, 36, 48)
