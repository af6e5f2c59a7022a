"""The reference of every op on one page: plain PyTorch, on any device; kernels are tested on them.

A reference has its op's name with the suffix `_ref` and the same arguments; it does not check them.
It computes in at least float32, and in float64 for float64 inputs. The scan has two: the chunked
form, and the recurrence token by token, which the chunked form is tested against.
"""

from tvkernels.attention_topk.reference import (
    attention_topk_hidden_ref,
    attention_topk_ref,
    dropped_indices_ref,
    uniform_topk_ref,
)
from tvkernels.causal_conv1d.reference import (
    causal_conv1d_fn_ref,
    causal_conv1d_update_ref,
    causal_conv1d_varlen_states_ref,
)
from tvkernels.compact.reference import compact_ref
from tvkernels.decode_step.reference import mamba2_decode_step_ref
from tvkernels.gated_cross_attention.reference import gated_cross_attention_ref
from tvkernels.prefix_attention.reference import prefix_attention_ref
from tvkernels.relu2.reference import relu2_ref
from tvkernels.replay_state_update.reference import replay_flush_ref, replay_state_update_ref
from tvkernels.rmsnorm.reference import layernorm_fn_ref, rms_norm_ref, rmsnorm_fn_ref
from tvkernels.selective_state_update.reference import selective_state_update_ref
from tvkernels.ssd.reference import mamba_chunk_scan_combined_ref, mamba_recurrence_ref
from tvkernels.tome.reference import tome_merge_ref

__all__ = [
    "attention_topk_hidden_ref",
    "attention_topk_ref",
    "causal_conv1d_fn_ref",
    "causal_conv1d_update_ref",
    "causal_conv1d_varlen_states_ref",
    "compact_ref",
    "dropped_indices_ref",
    "gated_cross_attention_ref",
    "layernorm_fn_ref",
    "mamba2_decode_step_ref",
    "mamba_chunk_scan_combined_ref",
    "mamba_recurrence_ref",
    "prefix_attention_ref",
    "relu2_ref",
    "replay_flush_ref",
    "replay_state_update_ref",
    "rms_norm_ref",
    "rmsnorm_fn_ref",
    "selective_state_update_ref",
    "tome_merge_ref",
    "uniform_topk_ref",
]
