"""A VideoChat-Flash directory in the layout of the hub, at tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.goldens import golden, manifest
from timeviper_fast.config import VisionConfig
from timeviper_fast.presets import VISION_PRESETS
from timeviper_fast.text.byte_tokenizer import byte_tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ABOUT = manifest("vcf_generate")


def tiny_tower() -> VisionConfig:
    """The encoder of the recorded end-to-end runs."""
    from dataclasses import replace

    tiny = ABOUT["config"]["vision"]
    return replace(
        VISION_PRESETS["umt-hd-large"],
        image_size=tiny["image_size"],
        patch_size=tiny["patch"],
        hidden_size=tiny["dim"],
        intermediate_size=4 * tiny["dim"],
        num_hidden_layers=tiny["depth_config"],
        num_attention_heads=tiny["heads"],
    )


def hub_config(**changes: Any) -> dict[str, Any]:
    """config.json with the keys of the released models."""
    llm = ABOUT["config"]["llm"]
    return {
        "architectures": ["VideoChatFlashQwenForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "modeling_videochat_flash.VideoChatFlashQwenConfig",
            "AutoModel": "modeling_videochat_flash.VideoChatFlashQwenForCausalLM",
        },
        "bos_token_id": 256,
        "eos_token_id": 258,
        "frame_aspect_ratio": "square",
        "frame_grid_pinpoints": None,
        "hidden_act": "silu",
        "image_aspect_ratio": "anyres_nopad",
        "image_grid_pinpoints": [[144 * w, 144 * h] for w in range(1, 7) for h in range(1, 7)],
        "initializer_range": 0.02,
        "max_window_layers": 28,
        "mm_hidden_size": 32,
        "mm_local_num_frames": 4,
        "mm_newline_position": "nothing",
        "mm_patch_merge_type": "spatial_nopad",
        "mm_pos_num_frames": 8,
        "mm_projector_type": "tome16_mlp_hd64",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "umt-hd-large",
        "model_type": "videochat_flash_qwen",
        "max_position_embeddings": 32768,
        "rope_scaling": None,
        # narrower than the recorded prompts: switched off, it must not count
        "sliding_window": 64,
        "tie_word_embeddings": True,
        "tokenizer_model_max_length": 32768,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_encode_type": "video_image",
        **llm,
        **changes,
    }


def hub_weights(blocks: int = 5) -> dict[str, torch.Tensor]:
    """The recorded runs' weights under the names of the hub's files, the last block repeated."""
    kept = {k: v for k, v in golden("vcf_generate").items() if k.startswith(("model.", "lm_head."))}
    last = {k: v for k, v in kept.items() if k.startswith("model.layers.4.")}
    for block in range(5, blocks):
        kept |= {k.replace(".4.", f".{block}.", 1): v.clone() for k, v in last.items()}
    return kept


def hub_directory(
    path: Path,
    weights: dict[str, torch.Tensor] | None = None,
    *,
    shards: int = 2,
    penalty: float | None = 1.1,
    **config: Any,
) -> Path:
    """Write config, generation config, tokenizer and weights in `shards` files with an index."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(hub_config(**config), indent=2))
    generation = {
        "bos_token_id": 256,
        "do_sample": True,
        "eos_token_id": [258, 256],
        "pad_token_id": 256,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "transformers_version": "4.40.1",
    }
    if penalty is not None:
        generation["repetition_penalty"] = penalty
    (path / "generation_config.json").write_text(json.dumps(generation))
    _write_tokenizer(path)
    weights = hub_weights() if weights is None else weights
    names = sorted(weights)
    places = {}
    for i in range(shards):
        part = names[i::shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else None
        save_file({n: weights[n] for n in part}, path / (file or "model.safetensors"))
        places |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def _write_tokenizer(path: Path) -> None:
    """Qwen2's files: a vocabulary of bytes, no merges, and three added tokens."""
    vocabulary = json.loads(byte_tokenizer(SPECIAL).backend_tokenizer.to_str())["model"]["vocab"]
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\n")
    added = {str(256 + i): special_token(token) for i, token in enumerate(SPECIAL)}
    about = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[2],
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": SPECIAL[0],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(about))
    ids = {token: 256 + i for i, token in enumerate(SPECIAL)}
    (path / "added_tokens.json").write_text(json.dumps(ids))


def special_token(token: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": token, "special": True, **flags}
