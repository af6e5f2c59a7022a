"""Every op in plain PyTorch, on one page: the truth that kernels are held to, on any device.

Same names as the ops with `_ref` behind, same arguments, no check of them. Each computes in at
least float32, so float64 inputs give the float64 truth. Of the scan there is also the recurrence as
it is written, token by token: what its chunked form is judged by.
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
from tvkernels.relu2.reference import relu2_ref
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
    "relu2_ref",
    "rms_norm_ref",
    "rmsnorm_fn_ref",
    "selective_state_update_ref",
    "tome_merge_ref",
    "uniform_topk_ref",
]
