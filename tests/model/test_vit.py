"""The vision transformer against transformers' SigLIP with the same random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.contract import errors
from timeviper_fast.config import VisionConfig
from timeviper_fast.model.vision.vit import VisionTransformer
from timeviper_fast.presets import VISION_PRESETS

# 30 // 7 = 4 patches per side: the last two rows and columns of pixels are not seen
SMALL = VisionConfig(
    image_size=30,
    patch_size=7,
    hidden_size=48,
    intermediate_size=92,
    num_hidden_layers=4,
    num_attention_heads=3,
)


def siglip(config: VisionConfig) -> torch.nn.Module:
    """transformers' model, every parameter random and large enough that each one matters."""
    transformers = pytest.importorskip("transformers")
    model = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            layer_norm_eps=config.layer_norm_eps,
            hidden_act=config.hidden_act,
        )
    ).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def our_weights(siglip_weights: dict[str, torch.Tensor], blocks: int) -> dict[str, torch.Tensor]:
    """transformers' names to timm's, by hand (not by the product)."""
    w = {name.removeprefix("vision_model."): value for name, value in siglip_weights.items()}
    ours = {
        "pos_embed": w["embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": w["embeddings.patch_embedding.weight"],
        "patch_embed.proj.bias": w["embeddings.patch_embedding.bias"],
    }
    for i in range(blocks):
        theirs, mine = f"encoder.layers.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            qkv = [w[f"{theirs}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            ours[f"{mine}attn.qkv.{kind}"] = torch.cat(qkv)
            for a, b in (
                ("layer_norm1", "norm1"),
                ("self_attn.out_proj", "attn.proj"),
                ("layer_norm2", "norm2"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ):
                ours[f"{mine}{b}.{kind}"] = w[f"{theirs}{a}.{kind}"]
    return ours


def pair(config: VisionConfig) -> tuple[torch.nn.Module, VisionTransformer]:
    theirs, ours = siglip(config), VisionTransformer(config).eval()
    ours.load_state_dict(our_weights(theirs.state_dict(), config.num_blocks))
    return theirs, ours


def pixels(frames: int, size: int = SMALL.image_size) -> torch.Tensor:
    return torch.randn(frames, 3, size, size, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("feature_layer", [-2, -1, 0, 2])
@torch.no_grad()
def test_equals_siglip_hidden_states(hidden_act: str, feature_layer: int) -> None:
    config = replace(SMALL, hidden_act=hidden_act, feature_layer=feature_layer)
    theirs, ours = pair(config)
    x = pixels(3)
    states = theirs(x, output_hidden_states=True).hidden_states  # [0] enters the first block
    truth = states[feature_layer % SMALL.num_hidden_layers + 1]
    assert truth.abs().max() > 1
    torch.testing.assert_close(ours(x), truth, rtol=0, atol=1e-5)


@torch.no_grad()
def test_feature_layer_minus_2_is_hidden_state_minus_2() -> None:
    theirs, ours = pair(SMALL)
    x = pixels(2)
    truth = theirs(x, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(ours(x), truth, rtol=0, atol=1e-5)


@torch.no_grad()
def test_activation_is_the_configured_one() -> None:
    erf = VisionTransformer(SMALL)
    tanh = VisionTransformer(replace(SMALL, hidden_act="gelu_pytorch_tanh"))
    weights = our_weights(siglip(SMALL).state_dict(), SMALL.num_blocks)
    erf.load_state_dict(weights)
    tanh.load_state_dict(weights)
    difference = (erf(pixels(1)) - tanh(pixels(1))).abs().max()
    assert 1e-5 < difference < 0.1  # the two cannot be told apart by a test that allows more


def test_builds_nothing_behind_the_feature_layer() -> None:
    names = set(VisionTransformer(SMALL).state_dict())
    weights = our_weights(siglip(SMALL).state_dict(), SMALL.num_hidden_layers)
    assert names == {name for name in weights if not name.startswith("blocks.3.")}


@pytest.mark.parametrize(
    ("name", "patches", "width", "blocks"),
    [
        ("siglip-vit-so400m-384px", 729, 1152, 26),
        ("siglip-vit-so400m", 256, 1152, 26),
        ("siglip-vit-b16-224px", 196, 768, 11),
        ("siglip-vit-b16-256px", 256, 768, 11),
        ("siglip-vit-b16-384px", 576, 768, 11),
    ],
)
def test_real_sizes_on_the_meta_device(name: str, patches: int, width: int, blocks: int) -> None:
    config = VISION_PRESETS[name]
    with torch.device("meta"):
        model = VisionTransformer(config).bfloat16()
        features = model(torch.empty(5, 3, config.image_size, config.image_size))
    assert features.shape == (5, patches, width)
    assert features.dtype == torch.bfloat16
    assert config.hidden_act == "gelu"
    assert len(model.blocks) == blocks
    assert model.pos_embed.shape == (1, patches, width)
    hidden = 4304 if width == 1152 else 3072
    assert model.blocks[-1].mlp.fc1.weight.shape == (hidden, width)


@torch.no_grad()
def test_bfloat16_is_close_to_float64() -> None:
    _, model = pair(SMALL)
    x = pixels(2)
    truth = model.double()(x)
    l2, worst = errors(model.bfloat16()(x), truth)
    assert model(x).dtype == torch.bfloat16
    assert l2 < 0.02
    assert worst < 0.02


@torch.no_grad()
def test_frames_do_not_see_each_other() -> None:
    _, model = pair(SMALL)
    x = pixels(5)
    parts = torch.cat([model(x[:1]), model(x[1:4]), model(x[4:])])
    torch.testing.assert_close(model(x), parts, rtol=0, atol=2e-6)
    assert model(x[:0]).shape == (0, 16, 48)


@torch.no_grad()
def test_pixels_beyond_the_last_patch_are_not_seen() -> None:
    _, model = pair(SMALL)
    x = pixels(1)
    changed = x.clone()
    changed[..., 28:, :] = 100
    changed[..., 28:] = 100
    assert torch.equal(model(x), model(changed))


@pytest.mark.parametrize("shape", [(3, 30, 30), (1, 30, 30, 3), (1, 3, 30, 28)])
def test_pixels_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"pixels must be \(frames, 3, 30, 30\), got shape"):
        VisionTransformer(SMALL)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (torch.zeros(1, 3, 30, 30, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(1, 30, 30, 3, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(1, 3, 30, 30, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(1, 3, 30, 30).numpy(), "ndarray"),
    ],
)
def test_frames_that_were_not_normalised(wrong: Any, kind: str) -> None:
    words = rf"pixels must be a tensor of floats \(preprocess.resize_normalize .*\), got {kind}$"
    with pytest.raises(ValueError, match=words):
        VisionTransformer(SMALL)(wrong)


@torch.no_grad()
def test_compiles_whole() -> None:
    _, model = pair(SMALL)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = pixels(2)
    torch.testing.assert_close(compiled(x), model(x))
