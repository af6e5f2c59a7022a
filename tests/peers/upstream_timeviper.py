"""Upstream TimeViper's own code on our stand-ins, against the tensors that were recorded from it.

    python tests/peers/upstream_timeviper.py [--backend triton] CHECKOUT [CASE ...]

CHECKOUT is a clone of xiaomi-research/timeviper at aeb6fda, which stays as it is: what a CPU lacks
is put in its place here, in memory. README.md beside this says in which environment, and what came
out. Exit code 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import nn

import tvkernels

ROOT = Path(__file__).parents[2]
# limits: absolute errors, relative ones for gradients; integers are compared exactly
LIMITS = {"hidden, logits": 2e-4, "states": 1e-4, "merged tokens": 1e-5, "gradients": 1e-3}
HIDDEN, STATES, MERGED, GRADIENTS = LIMITS
OPS = ("causal_conv1d_fn", "causal_conv1d_update", "mamba_chunk_scan_combined", "rmsnorm_fn")
OPS += ("mamba_split_conv1d_scan_combined", "selective_state_update")
STAGES = {"use_pdrop": True, "pdrop_type": "uni_5_0.5-attn_8_0.2"}
calls: Counter[str] = Counter()
# (stage, indices of the vision tokens that it kept)
kept: list[tuple[int, torch.Tensor]] = []


class Golden(dict):
    """The recorded tensors of one file, and the largest error of each kind of result."""

    def __init__(self, name):
        path = ROOT / "tests" / "data" / f"{name}.safetensors"
        super().__init__(load_file(path))
        self.manifest = json.loads(path.with_suffix(".json").read_text())
        self.errors, self.compared = {}, 0

    def close(self, kind, got, name):
        got, want = got.detach(), self[name].reshape(got.shape)
        error = (got - want).norm() / want.norm() if kind == GRADIENTS else (got - want).abs().max()
        self.errors[kind] = max(self.errors.get(kind, 0.0), float(error))
        self.compared += 1

    def same(self, got, name):
        assert got.tolist() == self[name].tolist(), (name, got, self[name])
        self.compared += 1

    def cache(self, cache, prefix):
        lists = {"key": cache.key_cache, "value": cache.value_cache}
        lists |= {"conv_state": cache.conv_states, "ssm_state": cache.ssm_states}
        for name in [name for name in self if name.startswith(prefix)]:
            layer, kind = name.removeprefix(f"{prefix}.layer").split(".")
            self.close(STATES, lists[kind][int(layer)], name)

    def beneath(self, prefix):
        return {n.removeprefix(prefix): t for n, t in self.items() if n.startswith(prefix)}


def attend(query, key, value, *_, position_ids, **__):
    """Flash attention in float32: causal, aligned at the last key, packed sequences separate."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    rows, columns = query.shape[2], key.shape[2]
    mask = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    if rows == columns:
        sequence = (position_ids[0] == 0).cumsum(0)
        mask &= sequence[:, None] == sequence
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def patched(checkout):
    """Upstream's modules, with replacements for all that needs a GPU or another package."""
    tvkernels.provide("mamba_ssm", "causal_conv1d")
    from transformers import PreTrainedModel

    PreTrainedModel._check_and_adjust_attn_implementation = lambda self, name, *_, **__: name
    torch.cuda.stream, torch.cuda.default_stream = nullcontext, lambda *_: None
    # the logger starts accelerate; the vision backbones need timm, torchvision and decord
    for name in ("utils.overwatch", "model.vit", "model.vit.registry"):
        sys.modules[f"timeviper.{name}"] = mock.MagicMock()
    sys.path.insert(0, str(checkout))
    # transformers looks for the two packages only if it finds a GPU; then it finds the stand-ins
    with mock.patch("torch.cuda.is_available", return_value=True):
        nano = import_module("timeviper.model.llm.llm_repo.nano.modeling_nano")
    nano._flash_attention_forward = attend
    mixer = nano.NemotronHMamba2Mixer
    # on a CPU the mixer would use its own PyTorch path
    mixer.forward, mixer.torch_forward = mixer.cuda_kernels_forward, None
    for name in OPS:
        assert getattr(nano, name) is getattr(tvkernels, name), f"upstream has no {name}"
        setattr(nano, name, counted(getattr(nano, name)))
    nano.NemotronHModel.pdrop_no_pack = observed(nano.NemotronHModel.pdrop_no_pack)
    vlm = import_module("timeviper.model.hybrid_vlm").HybridTimeViperVLM
    return nano, vlm, import_module("timeviper.model.llm").GenericLLMBackbone


def counted(op):
    @wraps(op)
    def call(*args, **words):
        calls[op.__name__] += 1
        return op(*args, **words)

    return call


def observed(drop):
    """The vision tokens that a stage keeps: those whose rows it does not change."""

    def stage(self, features, number, *args):
        result = drop(self, features, number, *args)
        first, count = int(args[5][0]), int(args[6][0])
        before, after = (int(count * self.pdrop_ratios[number + i]) for i in range(2))
        old, new = features[0, first : first + before], result[2][0][first : first + after]
        kept.append((number, (new[:, None] == old).all(-1).nonzero()[:, 1]))
        return result

    return stage


def language_model(nano, drop=True, transfer=True):
    weights = Golden("tiny_weights")
    words = {k: v for k, v in weights.manifest["config"].items() if k != "time_step_limit"}
    words |= {"merge_module": "CrossAttention" if transfer else "no_merge"}
    words |= STAGES if drop else {}
    layers = len(words["hybrid_override_pattern"])
    implementation = {"attn_implementation": "flash_attention_2"}
    config = nano.NemotronHConfig(num_hidden_layers=layers, **implementation, **words)
    model = nano.NemotronHForCausalLM(config).eval()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    model.set_pdrop_args(**model.backbone.pdrop_args)
    return model


@torch.no_grad()
def prefill_and_decode(data, name, nano, *_):
    lengths = data.manifest["sequence"]
    model = language_model(nano, "nodrop" not in name, "transv" in name)
    cache = nano.HybridMambaAttentionDynamicCache(model.config, 1, torch.float32)
    words = {
        "first_vision_token_positions": torch.tensor([lengths["prefix_text"]]),
        "num_vision_tokens": [lengths["vision"]],
        "text_prompt_lens": [lengths["prefix_text"] + lengths["text_after"]],
        "is_interleaved": False,
    }
    run = partial(model, past_key_values=cache, use_cache=True, output_hidden_states=True)
    run = partial(run, train_pdrop_args=words)
    at = torch.arange(lengths["total"])
    out = run(inputs_embeds=data["inputs_embeds"], cache_position=at, position_ids=at[None])
    for i, hidden in enumerate(out.hidden_states[:-1]):
        data.close(HIDDEN, hidden, f"hidden.{i:02d}")
    data.close(HIDDEN, out.hidden_states[-1], "hidden.final")
    data.close(HIDDEN, out.logits, "prefill.logits")
    for stage, indices in kept:
        data.same(indices, f"stage{stage}.kept")
    data.cache(cache, "prefill_cache")
    tokens, logits, hidden = [out.logits[0, -1].argmax()], [], []
    for i in range(6):
        at = torch.tensor([lengths["total"] + i])
        out = run(tokens[-1].reshape(1, 1), cache_position=at, position_ids=at[None])
        logits.append(out.logits[0, -1])
        hidden.append(out.hidden_states[-1][0, 0])
        tokens.append(logits[-1].argmax())
    data.same(torch.stack(tokens), "decode.tokens")
    data.close(HIDDEN, torch.stack(logits), "decode.logits")
    data.close(HIDDEN, torch.stack(hidden), "decode.final_hidden")
    data.cache(cache, "final_cache")


@torch.no_grad()
def mixer(data, name, nano, *_):
    sizes = data.manifest["config"]
    words = {"mamba_num_heads": "heads", "mamba_head_dim": "hd", "mamba_n_groups": "G"}
    words |= {"ssm_state_size": "N", "mamba_chunk_size": "chunk", "hidden_size": "hid"}
    words = {word: sizes[size] for word, size in words.items()}
    config = nano.NemotronHConfig(num_hidden_layers=1, hybrid_override_pattern="M", **words)
    layer = nano.NemotronHMamba2Mixer(config, 0).eval()
    layer.load_state_dict(data.beneath("weight."))
    cache = nano.HybridMambaAttentionDynamicCache(config, sizes["B"], torch.float32)
    seen = []
    hook = layer.norm.register_forward_hook(lambda _, given, out: seen.extend([*given, out]))
    data.close(HIDDEN, layer(data["input"], cache, torch.arange(sizes["L"])), "output")
    hook.remove()
    for inner, got in zip(("scan_output_before_gate", "gate_z", "gated_norm_output"), seen):
        data.close(HIDDEN, got, inner)
    data.close(STATES, cache.conv_states[0], "conv_state")
    data.close(STATES, cache.ssm_states[0], "ssm_state")
    steps = data["step_input"].split(1, dim=1)
    out = [layer(x, cache, torch.tensor([sizes["L"] + i])) for i, x in enumerate(steps)]
    data.close(HIDDEN, torch.cat(out, dim=1), "step_output")
    data.close(STATES, cache.conv_states[0], "conv_state_after_steps")
    data.close(STATES, cache.ssm_states[0], "ssm_state_after_steps")
    layer.train()
    data.close(HIDDEN, layer(data["input"]), "fused_training_output")
    data.close(HIDDEN, layer(data["input"][:1], seq_idx=data["packed_seq_idx"]), "packed_output")


def whole_model(data, nano, vlm_class, backbone_class):
    """The model on given features, and the arguments with which it calls its language model."""
    backbone = backbone_class.__new__(backbone_class)
    nn.Module.__init__(backbone)
    backbone.llm, backbone.llm_family = language_model(nano), "nano"
    answer = SimpleNamespace(input_ids=data.get("answer_prompt_ids", torch.empty(0))[None])
    backbone.tokenizer = mock.Mock(return_value=answer)
    backbone.tokenizer.convert_tokens_to_ids.return_value = data.manifest["image_placeholder_id"]
    vision = mock.Mock(embed_dim=32, get_identifier="siglip", side_effect=lambda x, is_video: x)
    vlm = vlm_class("tiny", vision, backbone, arch_specifier=data.manifest["projector"])
    vlm.projector.load_state_dict(data.beneath("projector."))
    asked = []
    backbone.llm.register_forward_pre_hook(lambda *a: asked.append(a[2]), with_kwargs=True)
    return vlm, asked


def packed_training(data, name, *upstream):
    vlm, asked = whole_model(data, *upstream)
    vlm.train()
    lengths = data["txt_seq_lens"].tolist()
    frames = [sample["frames"] for sample in data.manifest["samples"]]
    texts = zip(data["input_ids"].split(lengths), data["labels"].split(lengths))
    videos = data["features"].split(frames)
    runs = {"": (data["input_ids"], data["labels"], data["features"], lengths)}
    for i, ((ids, labels), video) in enumerate(zip(texts, videos)):
        runs[f"single{i}."] = (ids, labels, video, [len(ids)])
    for prefix, (ids, labels, video, counts) in runs.items():
        vlm.zero_grad()
        kept.clear()
        words = {"pixel_values_videos": video, "txt_seq_lens": counts}
        out = vlm(input_ids=ids[None], labels=labels[None], **words)
        given = asked.pop()
        given["inputs_embeds"].retain_grad()
        out.loss.backward()
        data.close(HIDDEN, given["inputs_embeds"], f"{prefix}fused_embeddings")
        data.same(given["labels"], f"{prefix}fused_labels")
        data.same(given["position_ids"], f"{prefix}position_ids")
        if not prefix:
            data.same(given["seq_idx"], "seq_idx")
        for i, (stage, indices) in enumerate(kept):
            data.same(indices, f"{prefix}stage{stage}.sample{i % len(counts)}.kept")
        data.close(HIDDEN, out.logits, f"{prefix}logits")
        data.close(HIDDEN, out.loss, f"{prefix}loss")
        got = {parameter_name: p.grad for parameter_name, p in vlm.named_parameters()}
        got["fused_embeddings"] = given["inputs_embeds"].grad
        for parameter_name in data.beneath(f"{prefix}grad."):
            data.close(GRADIENTS, got[parameter_name], f"{prefix}grad.{parameter_name}")


def generation(data, name, *upstream):
    vlm, asked = whole_model(data, *upstream)
    vlm.eval()
    ids = data["input_ids"]
    words = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    words |= {"attention_mask": torch.ones_like(ids), "pixel_values_videos": data["features"]}
    words |= {"return_dict_in_generate": True, "output_logits": True, "answer_prompt": "answer"}
    made = vlm.generate(ids, **words)
    data.close(MERGED, vlm.projector_forward(data["features"], is_video=True), "visual_embeddings")
    data.close(HIDDEN, asked[0]["inputs_embeds"], "fused_embeddings")
    data.same(asked[0]["position_ids"], "prefill.position_ids")
    data.same(asked[0]["cache_position"], "prefill.cache_position")
    for stage, indices in kept:
        data.same(indices, f"stage{stage}.kept")
    data.close(HIDDEN, torch.cat(made.logits), "logits")
    data.same(made.sequences[0, ids.shape[1] :], "generated")


CASES = dict.fromkeys(("run_nodrop_short", "run_nodrop_long"), prefill_and_decode)
CASES |= dict.fromkeys(("run_transv_short", "run_transv_long"), prefill_and_decode)
CASES |= {"run_droponly_short": prefill_and_decode, "mamba_mixer": mixer}
CASES |= {"packed_training": packed_training, "vlm_generate": generation}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", choices=["reference", "triton"], default="reference")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], metavar="CASE")
    asked = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.path.append(str(ROOT))
        import_module("tests.interpreter").install()
    upstream, missed = patched(asked.checkout), False
    for name in asked.cases or CASES:
        kept.clear()
        calls.clear()
        data = Golden(name)
        with tvkernels.use_backend(asked.backend):
            CASES[name](data, name, *upstream)
        for kind, error in data.errors.items():
            missed |= error > LIMITS[kind]
            print(f"{name}: {kind} {error:.1e}, limit {LIMITS[kind]:.0e}")
        print(f"{name}: {data.compared} compared;", *(f"{op} {n}x" for op, n in calls.items()))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
