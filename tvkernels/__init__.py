"""Portable kernels for Mamba-2 hybrids and token-compressing video models: the public names.

    __main__.py           python -m tvkernels: which backend runs each op here
    reference.py          every op's PyTorch reference on one page
    split_conv1d_scan.py  mamba_split_conv1d_scan_combined, composed of the other ops

Importing this imports no Triton; a kernel is imported when a tensor first needs it.
"""

from tvkernels.attention_topk import (
    TopKResult,
    attention_topk,
    attention_topk_hidden,
    dropped_indices,
    uniform_topk,
)
from tvkernels.causal_conv1d import (
    causal_conv1d_fn,
    causal_conv1d_update,
    causal_conv1d_varlen_states,
)
from tvkernels.compact import CompactResult, compact
from tvkernels.core.backend import BackendUnavailable, OpBackend, explain, use_backend
from tvkernels.decode_step import mamba2_decode_step
from tvkernels.gated_cross_attention import gated_cross_attention
from tvkernels.integrations import (
    Fallback,
    KernelLayer,
    Patch,
    Provider,
    Provision,
    Replacement,
    kernel_mapping,
    patch_transformers,
    provide,
    providers,
    unpatch_transformers,
)
from tvkernels.prefix_attention import prefix_attention
from tvkernels.relu2 import relu2
from tvkernels.replay_state_update import replay_flush, replay_state_update
from tvkernels.rmsnorm import layernorm_fn, rms_norm, rmsnorm_fn
from tvkernels.selective_state_update import selective_state_update
from tvkernels.split_conv1d_scan import mamba_split_conv1d_scan_combined
from tvkernels.ssd import mamba_chunk_scan_combined
from tvkernels.tome import ToMeResult, tome_merge

__all__ = [
    "BackendUnavailable",
    "CompactResult",
    "Fallback",
    "KernelLayer",
    "OpBackend",
    "Patch",
    "Provider",
    "Provision",
    "Replacement",
    "ToMeResult",
    "TopKResult",
    "attention_topk",
    "attention_topk_hidden",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "causal_conv1d_varlen_states",
    "compact",
    "dropped_indices",
    "explain",
    "gated_cross_attention",
    "kernel_mapping",
    "layernorm_fn",
    "mamba2_decode_step",
    "mamba_chunk_scan_combined",
    "mamba_split_conv1d_scan_combined",
    "patch_transformers",
    "prefix_attention",
    "provide",
    "providers",
    "relu2",
    "replay_flush",
    "replay_state_update",
    "rms_norm",
    "rmsnorm_fn",
    "selective_state_update",
    "tome_merge",
    "uniform_topk",
    "unpatch_transformers",
    "use_backend",
]

# the packages' one version number: pyproject.toml reads it from here
__version__ = "0.1.0"
