"""The LLM's shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from timeviper_fast.errors import (
    ABOVE_0,
    BOOL,
    COUNT,
    FROM_0,
    IDS,
    RANGE,
    SIZE,
    Kind,
    expect,
    expect_one_of,
    fail,
)

__all__ = ["ATTENTION", "EXPERTS", "MAMBA", "MLP", "BackboneConfig"]

Family = Literal["nemotron_h", "qwen2"]

MAMBA, ATTENTION, MLP, EXPERTS = "M", "*", "-", "E"

_PATTERN = Kind(
    "be a non-empty string of the letters M, *, - and E",
    lambda v: isinstance(v, str) and v != "" and set(v) <= {MAMBA, ATTENTION, MLP, EXPERTS},
)


@dataclass(frozen=True)
class BackboneConfig:
    """The LLM: one residual per layer, each layer one mixer.

    `pattern` has one letter per layer: M Mamba-2, * attention, - MLP, E mixture of experts.
    `family` "nemotron_h": a hybrid of these; attention has no positional encoding, the MLP is
    down(relu(up)^2), and so is each expert. The fields of experts are read where the pattern has an
    E: each token passes through the `experts_per_token` best of `num_experts`, chosen in the
    `best_expert_groups` best of `expert_groups` groups, and through one shared expert. "qwen2":
    each of Qwen2's blocks is the two layers *-; queries and keys are rotated by their position with
    the base `rope_theta`, the MLP is down(silu(gate) * up), `attention_bias` is that of q, k and v
    only, and the fields of Mamba-2 are not read. `time_step_limit` clamps dt after softplus;
    Nemotron-H's checkpoints use no clamp. `time_step_min/max/floor` are used to initialise dt_bias
    only. `eos_token_ids` are the token ids that end an answer.
    """

    vocab_size: int = 131072
    hidden_size: int = 4480
    intermediate_size: int = 15680
    pattern: str = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
    num_attention_heads: int = 40
    num_key_value_heads: int = 8
    head_dim: int = 128
    mamba_num_heads: int = 128  # H
    mamba_head_dim: int = 80  # P
    n_groups: int = 8  # G
    ssm_state_size: int = 128  # N
    conv_kernel: int = 4
    chunk_size: int = 128  # Q
    norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    mamba_proj_bias: bool = False
    use_conv_bias: bool = True
    tie_word_embeddings: bool = False
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    max_position_embeddings: int = 131072
    eos_token_ids: tuple[int, ...] = (2,)
    family: Family = "nemotron_h"
    rope_theta: float = 0.0  # 0: no positional encoding
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    shared_expert_size: int = 0
    expert_latent_size: int = 0  # 0: the experts read the layer's input itself
    expert_groups: int = 1
    best_expert_groups: int = 1
    normalize_expert_weights: bool = True  # to a sum of 1, before they are scaled
    expert_scale: float = 1.0

    def __post_init__(self) -> None:
        owner = "BackboneConfig"
        expect(
            owner, self, SIZE, "vocab_size", "hidden_size", "intermediate_size",
            "num_attention_heads", "num_key_value_heads", "head_dim", "mamba_num_heads",
            "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "chunk_size",
            "max_position_embeddings",
        )  # fmt: skip
        expect(
            owner, self, BOOL, "attention_bias", "mlp_bias", "mamba_proj_bias", "use_conv_bias",
            "tie_word_embeddings", "normalize_expert_weights",
        )  # fmt: skip
        expect(
            owner, self, COUNT, "num_experts", "experts_per_token", "expert_size",
            "shared_expert_size", "expert_latent_size",
        )  # fmt: skip
        expect(owner, self, SIZE, "expert_groups", "best_expert_groups")
        expect(owner, self, ABOVE_0, "expert_scale")
        expect(owner, self, ABOVE_0, "norm_eps", "time_step_min", "time_step_max")
        expect(owner, self, FROM_0, "time_step_floor", "rope_theta")
        expect_one_of(owner, "family", self.family, ("nemotron_h", "qwen2"))
        expect(owner, self, RANGE, "time_step_limit")
        expect(owner, self, IDS, "eos_token_ids")
        expect(owner, self, _PATTERN, "pattern")
        if max(self.eos_token_ids, default=0) >= self.vocab_size:
            rule = f"lie below vocab_size ({self.vocab_size})"
            fail(owner, "eos_token_ids", rule, self.eos_token_ids)
        if self.num_attention_heads % self.num_key_value_heads:
            rule = f"divide num_attention_heads ({self.num_attention_heads})"
            fail(owner, "num_key_value_heads", rule, self.num_key_value_heads)
        if self.mamba_num_heads % self.n_groups:
            fail(
                owner, "n_groups", f"divide mamba_num_heads ({self.mamba_num_heads})", self.n_groups
            )
        self._check_family()
        if EXPERTS in self.pattern:
            self._check_experts()

    def _check_family(self) -> None:
        owner, of = "BackboneConfig", f"for family={self.family!r}"
        if self.family != "qwen2":
            if self.rope_theta:
                fail(owner, "rope_theta", f"be 0 {of}", self.rope_theta)
            return
        if self.pattern != "*-" * (len(self.pattern) // 2):
            fail(owner, "pattern", f"repeat *- {of}", self.pattern)
        if not self.rope_theta:
            fail(owner, "rope_theta", f"be above 0 {of}", self.rope_theta)
        if self.head_dim % 2:
            fail(owner, "head_dim", f"be even {of}", self.head_dim)

    def _check_experts(self) -> None:
        owner, of = "BackboneConfig", "for a pattern with E"
        for name in ("num_experts", "experts_per_token", "expert_size", "shared_expert_size"):
            if getattr(self, name) == 0:
                fail(owner, name, f"be above 0 {of}", 0)
        if self.mlp_bias:
            fail(owner, "mlp_bias", f"be False {of}", True)
        groups, best = self.expert_groups, self.best_expert_groups
        # a group is judged by its two best
        if self.num_experts % groups or (groups > 1 and self.num_experts < 2 * groups):
            rule = f"divide num_experts ({self.num_experts}) into groups of two or more"
            fail(owner, "expert_groups", rule, groups)
        if best > groups:
            fail(owner, "best_expert_groups", f"be at most expert_groups ({groups})", best)
        most = self.num_experts // groups * best
        if self.experts_per_token > most:
            rule = f"be at most {most}, the experts that can be chosen"
            fail(owner, "experts_per_token", rule, self.experts_per_token)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.pattern)

    @property
    def layers_per_block(self) -> int:
        """Our layers in one of the layers that the family's own config and users count."""
        return 2 if self.family == "qwen2" else 1

    def named(self, layer: int) -> str:
        """One of our layers as the family's users count: "layer 7", or "block 4" of Qwen2."""
        per = self.layers_per_block
        return f"layer {layer}" if per == 1 else f"block {layer // per}"

    @property
    def d_inner(self) -> int:
        """Channels inside a Mamba-2 mixer: heads times head dimension."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: x, B and C side by side."""
        return self.d_inner + 2 * self.n_groups * self.ssm_state_size

    def layers_of(self, letter: str) -> tuple[int, ...]:
        """Indices of the layers whose pattern letter is `letter`."""
        return tuple(i for i, kind in enumerate(self.pattern) if kind == letter)
