"""The table of ops: which kernels there are, and which of them each public op launches."""

from __future__ import annotations

__all__ = ["KERNELS", "OPS"]

# a kernel is named after its op folder and serves every public function of that folder
KERNELS = (
    "ssd",
    "causal_conv1d",
    "selective_state_update",
    "replay_state_update",
    "decode_step",
    "rmsnorm",
    "tome",
    "attention_topk",
    "compact",
    "gated_cross_attention",
    "prefix_attention",
    "relu2",
)

# the kernels of each public op; one without a kernel runs in plain PyTorch on every device
OPS: dict[str, tuple[str, ...]] = {
    "mamba_chunk_scan_combined": ("ssd",),
    "mamba_split_conv1d_scan_combined": ("causal_conv1d", "ssd", "rmsnorm"),
    "causal_conv1d_fn": ("causal_conv1d",),
    "causal_conv1d_update": ("causal_conv1d",),
    "causal_conv1d_varlen_states": ("causal_conv1d",),
    "selective_state_update": ("selective_state_update",),
    "replay_state_update": ("replay_state_update",),
    "replay_flush": ("replay_state_update",),
    "mamba2_decode_step": ("decode_step",),
    "rms_norm": ("rmsnorm",),
    "rmsnorm_fn": ("rmsnorm",),
    "layernorm_fn": ("rmsnorm",),
    "tome_merge": ("tome",),
    "attention_topk": ("attention_topk",),
    "attention_topk_hidden": ("attention_topk",),
    "uniform_topk": (),
    "dropped_indices": (),
    "compact": ("compact",),
    "gated_cross_attention": ("gated_cross_attention",),
    "prefix_attention": ("prefix_attention",),
    "relu2": ("relu2",),
}
