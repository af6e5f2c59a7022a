"""Published shapes by name: whole models, and the encoders and LLMs they are built with."""

from __future__ import annotations

from dataclasses import replace

from timeviper_fast.config import (
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.errors import fail

__all__ = ["FLASH", "LLM_PRESETS", "PRESETS", "VISION_PRESETS", "preset"]

_TRANSV_9B = (CompressionStage(7, "uniform", 0.5), CompressionStage(39, "attention", 0.1))

_NANO_12B = BackboneConfig(
    hidden_size=5120,
    intermediate_size=20480,
    pattern="M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
)

_NEMOTRON_H_8B = BackboneConfig(
    hidden_size=4096,
    intermediate_size=21504,
    pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    num_attention_heads=32,
    mamba_head_dim=64,
    max_position_embeddings=8192,
)

_QWEN2_7B = BackboneConfig(
    family="qwen2",
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    pattern="*-" * 28,
    num_attention_heads=28,
    num_key_value_heads=4,
    norm_eps=1e-6,
    attention_bias=True,
    rope_theta=1e6,
    max_position_embeddings=32768,
    eos_token_ids=(151645, 151643),
)

# Qwen2's and Qwen2.5's LLMs. TimeViper's second backbone is Qwen2.5-7B.
LLM_PRESETS = {
    "qwen2-7b": _QWEN2_7B,
    "qwen2.5-7b": _QWEN2_7B,
    # VideoChat-Flash 2B stores an lm_head of its own
    "qwen2.5-1.5b": replace(
        _QWEN2_7B,
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_attention_heads=12,
        num_key_value_heads=2,
    ),
}

# every part of the 9B model at a small width, for random weights on a laptop
_TINY = TimeViperConfig(
    backbone=BackboneConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        pattern="M-M*-M-M*-M-",
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        mamba_num_heads=8,
        mamba_head_dim=32,
        n_groups=2,
        ssm_state_size=32,
        chunk_size=64,
        max_position_embeddings=262144,
        eos_token_ids=(256,),
    ),
    vision=VisionConfig(
        image_size=98,
        patch_size=14,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
    ),
    stages=(CompressionStage(2, "uniform", 0.5), CompressionStage(8, "attention", 0.1)),
)

# what `synthetic` trains from nothing on a CPU; 4 visual tokens per frame of 48 pixels
_TINY_TRAINED = TimeViperConfig(
    backbone=replace(_TINY.backbone, vocab_size=264, pattern="M-M*M*-", num_key_value_heads=4),
    vision=VisionConfig(
        image_size=48,
        patch_size=8,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_act="gelu_pytorch_tanh",
        feature_layer=-1,
    ),
    projector=ProjectorConfig(num_tokens=4),
    stages=(
        CompressionStage(2, "uniform", 0.5),
        CompressionStage(3, "attention", 0.1, score="normed"),
    ),
)

# SigLIP encoders under upstream's ids. timm uses the exact GELU in all of them.
VISION_PRESETS = {
    "siglip-vit-so400m-384px": VisionConfig(),
    "siglip-vit-so400m": VisionConfig(image_size=224),
} | {
    f"siglip-vit-b16-{size}px": VisionConfig(
        image_size=size,
        patch_size=16,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    for size in (224, 256, 384)
}

_DINOV2_L = VisionConfig(
    kind="dinov2",
    image_size=224,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    # ImageNet's
    image_mean=(0.485, 0.456, 0.406),
    image_std=(0.229, 0.224, 0.225),
    register_tokens=4,
)
_UMT_L = replace(
    _DINOV2_L, kind="umt", patch_size=16, register_tokens=0, clip_frames=4, resize="pillow13"
)
_INTERNVIDEO2_1B = replace(
    _DINOV2_L,
    kind="internvideo2",
    hidden_size=1408,
    intermediate_size=6144,
    num_hidden_layers=40,
    register_tokens=0,
    clip_frames=4,
    resize="pillow13",
)

# upstream's other encoders under its ids, and VideoChat-Flash's under the names in its config.json
VISION_PRESETS |= {
    "dinov2-vit-l": _DINOV2_L,
    "internvideo2-1b-16-224px": _INTERNVIDEO2_1B,
    "internvideo2": _INTERNVIDEO2_1B,
    "umt-large": _UMT_L,
    "umt-hd-large": replace(_UMT_L, image_size=448),
}

# VideoChat-Flash merges 4 frames into 64 tokens, and an image into as many.
FLASH = TimeViperConfig(
    backbone=LLM_PRESETS["qwen2.5-1.5b"],
    vision=VISION_PRESETS["umt-hd-large"],
    projector=ProjectorConfig(clip_frames=4, image_tokens=64),
    template="qwen_2",
    policy="videochat-flash",
    mention_duration=True,
    repetition_penalty=1.1,
)
_FLASH_7B = replace(FLASH, backbone=_QWEN2_7B, repetition_penalty=1.05)

# CLIP's means and deviations
_C_RADIO_H = VisionConfig(
    kind="radio",
    image_size=512,
    patch_size=16,
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    feature_layer=-1,
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
    resize="float",
    register_tokens=16,
    position_side=128,
)
# 256 tokens per frame, 30 % of which stay
_NANO_VL_12B = TimeViperConfig(
    backbone=replace(_NANO_12B, vocab_size=132096, eos_token_ids=(12,)),
    vision=_C_RADIO_H,
    projector=ProjectorConfig("pixel_shuffle_mlp", inner_size=20480),
    stages=(CompressionStage(0, "content", 1.0, transfer=False, prune=0.7),),
    template="nemotron_vl",
    policy="linspace:fps=2:max=128",
)
# two frames make one patch
_NANO_OMNI_30B = replace(
    _NANO_VL_12B,
    backbone=BackboneConfig(
        hidden_size=2688,
        pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        num_attention_heads=32,
        num_key_value_heads=2,
        mamba_num_heads=64,
        mamba_head_dim=64,
        max_position_embeddings=262144,
        eos_token_ids=(2, 11),
        num_experts=128,
        experts_per_token=6,
        expert_size=1856,
        shared_expert_size=3712,
        expert_scale=2.5,
    ),
    vision=replace(_C_RADIO_H, clip_frames=2, register_tokens=10, resize="float_aspect"),
    template="nemotron_omni",
    policy="linspace:fps=1:max=512",
)

PRESETS = {
    "nemotron-nano-9b-v2": TimeViperConfig(stages=_TRANSV_9B),
    "nemotron-nano-12b-v2": TimeViperConfig(backbone=_NANO_12B),
    "nemotron-nano-12b-v2-vl": _NANO_VL_12B,
    "nemotron-3-nano-omni-30b-a3b": _NANO_OMNI_30B,
    "nemotron-h-8b": TimeViperConfig(backbone=_NEMOTRON_H_8B),
    "timeviper-qwen2.5-7b": TimeViperConfig(backbone=_QWEN2_7B, template="qwen2"),
    "videochat-flash-2b-448": FLASH,
    "videochat-flash-7b-224": replace(_FLASH_7B, vision=VISION_PRESETS["umt-large"]),
    "videochat-flash-7b-448": _FLASH_7B,
    "videochat-flash-7b-internvideo2": replace(_FLASH_7B, vision=VISION_PRESETS["internvideo2"]),
    "tiny": _TINY,
    "tiny-trained": _TINY_TRAINED,
}


def preset(name: str) -> TimeViperConfig:
    """A named configuration: nemotron-nano-9b-v2 (TimeViper's, with its two TransV stages),
    nemotron-nano-12b-v2, nemotron-nano-12b-v2-vl and nemotron-3-nano-omni-30b-a3b (as released,
    with their pruning by content; the second without audio), nemotron-h-8b, timeviper-qwen2.5-7b
    (its second LLM, without stages), videochat-flash-2b-448, -7b-224, -7b-448 and -7b-internvideo2
    (as released, without stages), tiny (for demos and tests), or tiny-trained (for training on the
    synthetic world on a CPU).

    Raises:
        ValueError: no such preset.
    """
    if name not in list(PRESETS):
        rule = f"be one of {', '.join(map(repr, PRESETS))}"
        fail("preset", "name", rule, name)
    return PRESETS[name]
