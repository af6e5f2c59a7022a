"""A Nemotron-Nano-VL directory in the layout of the hub, at the sizes of the recorded runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.goldens import golden, manifest
from timeviper_fast.text.byte_tokenizer import byte_tokenizer

ABOUT = manifest("nemotron_vl_weights")
# ids 256, 257, ... behind the bytes; the first three have the ids of the recorded prompts
SPECIAL = (
    "<image>",
    "<img>",
    "</img>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "<video>",
    "<s>",
    "<SPECIAL_10>",
    "<SPECIAL_11>",
    "<SPECIAL_12>",
)
# what the recording states in the words of a released config.json
RECORDED = (
    "projector_hidden_size",
    "vit_hidden_size",
    "force_image_size",
    "downsample_ratio",
    "ps_version",
    "video_pruning_rate",
    "img_context_token_id",
    "norm_mean",
    "norm_std",
)
IDS = {token: 256 + i for i, token in enumerate(SPECIAL)}


def hub_config(**changes: Any) -> dict[str, Any]:
    """config.json with the keys of the released 12B.

    `llm_config` and `vision_config` hold the recorded model's sizes. A released vision_config names
    its encoder (`args.model`) instead of stating sizes; here the sizes stand beside the name, in
    transformers' words.
    """
    recorded = ABOUT["config"]
    tower = recorded["vision_config"]
    size = recorded["force_image_size"]
    llm = recorded["llm_config"]
    return {
        "architectures": ["NemotronH_Nano_VL_V2"],
        "auto_map": {
            "AutoConfig": "configuration.NemotronH_Nano_VL_V2_Config",
            "AutoModel": "modeling.NemotronH_Nano_VL_V2",
        },
        "model_type": "NemotronH_Nano_VL_V2",
        **{key: recorded[key] for key in RECORDED},
        "patch_size": tower["patch_size"],
        "image_tag_type": "internvl",
        "template": "nemotron_h_vl",
        "use_thumbnail": True,
        "img_context_token": "<image>",
        "video_context_token": "<video>",
        "video_context_token_id": IDS["<video>"],
        "img_start_token": "<img>",
        "img_end_token": "</img>",
        "max_sequence_length": 131072,
        "torch_dtype": "float32",
        "llm_config": {
            "architectures": ["NemotronHForCausalLM"],
            "model_type": "nemotron_h",
            "num_hidden_layers": len(llm["hybrid_override_pattern"]),
            "max_position_embeddings": 131072,
            "attention_bias": False,
            "mlp_bias": False,
            "use_bias": False,
            "use_conv_bias": True,
            "mlp_hidden_act": "relu2",
            "mamba_hidden_act": "silu",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": False,
            "time_step_limit": [0.0, "inf"],
            # no rotary positions are applied; released files carry the key all the same
            "rope_theta": 10000,
            **llm,
            "eos_token_id": IDS["<SPECIAL_12>"],
        },
        "vision_config": {
            "args": {
                "model": "vit_huge_patch16_224",
                "register_multiple": tower["num_cls_tokens"] + tower["num_registers"],
                "teachers": [{"name": name} for name in ("clip", "siglip", "dino_v2", "sam")],
                "cls_token_per_teacher": True,
                "cpe_max_size": tower["max_img_size"],
            },
            "patch_size": tower["patch_size"],
            "preferred_resolution": [size, size],
            "max_resolution": tower["max_img_size"],
            "version": "radio_v2.5-h",
            "num_attention_heads": tower["num_attention_heads"],
            "hidden_size": tower["hidden_size"],
            "num_hidden_layers": tower["num_hidden_layers"],
        },
        **changes,
    }


def hub_weights() -> dict[str, torch.Tensor]:
    """The recorded weights under the names of the hub's files, with what the tower also stores."""
    recorded = ABOUT["config"]
    conditioner = "vision_model.radio_model.input_conditioner"
    return golden("nemotron_vl_weights") | {
        f"{conditioner}.norm_mean": torch.tensor(recorded["norm_mean"]).reshape(3, 1, 1),
        f"{conditioner}.norm_std": torch.tensor(recorded["norm_std"]).reshape(3, 1, 1),
        "vision_model.radio_model.summary_idxs": torch.tensor([0, 1, 2]),
    }


def hub_directory(
    path: Path, weights: dict[str, torch.Tensor] | None = None, *, shards: int = 2, **config: Any
) -> Path:
    """Write config, tokenizer and weights in `shards` files with an index.

    Args:
        path: a directory that does not exist yet.
        weights: those of the files; default: `hub_weights`.
        shards: number of files.
        config: top-level keys of config.json that differ from `hub_config`.
    """
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(hub_config(**config), indent=2))
    ends = {"bos_token_id": IDS["<s>"], "eos_token_id": IDS["<SPECIAL_12>"]}
    (path / "generation_config.json").write_text(json.dumps(ends))
    _write_tokenizer(path)
    weights = hub_weights() if weights is None else weights
    names, places = sorted(weights), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]
        save_file({name: weights[name] for name in part}, path / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def _write_tokenizer(path: Path) -> None:
    """One token per byte and the special tokens; as released, none of them pads."""
    byte_tokenizer(SPECIAL).backend_tokenizer.save(str(path / "tokenizer.json"))
    about = {
        "bos_token": "<s>",
        "eos_token": "<SPECIAL_12>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(about))
