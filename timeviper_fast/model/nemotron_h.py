"""The layers of the LLM: Mamba-2, attention, MLP and experts; `stack.py` runs them.

Every layer is y = x + mixer(RMSNorm(x)). In the Nemotron-H family attention has no positional
encoding; the order comes from Mamba-2. `qwen2.py` has what Qwen2's layers add. Parameters keep
Hugging Face's Nemotron-H names. A_log, D and dt_bias live in the model's dtype, as in TimeViper's
checkpoints (bf16 there), and are widened to float32 where they are used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from timeviper_fast.config import (
    ATTENTION,
    EXPERTS,
    MAMBA,
    BackboneConfig,
    CompressionStage,
    check_stages,
)
from timeviper_fast.errors import fail
from timeviper_fast.model.attention import Attention
from timeviper_fast.model.cache import AttentionState
from timeviper_fast.model.experts import MixtureOfExperts, Mlp
from timeviper_fast.model.mamba_state import MambaState
from timeviper_fast.model.qwen2 import GatedMlp
from timeviper_fast.model.stack import LayerStack, Packing
from timeviper_fast.model.transv import TransV
from tvkernels import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba2_decode_step,
    mamba_chunk_scan_combined,
    replay_state_update,
    rms_norm,
    rmsnorm_fn,
)

__all__ = ["HybridBackbone"]


def _wide(x: Tensor) -> Tensor:
    """`x` in float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Conv1d(nn.Module):
    """Parameters of the depthwise causal convolution: weight (channels, 1, width), bias."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None


class Mamba2(nn.Module):
    """in_proj -> causal conv -> state-space scan -> gated grouped RMSNorm -> out_proj."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        inner, heads = config.d_inner, config.mamba_num_heads
        bias = config.mamba_proj_bias
        self.widths = [inner, config.conv_dim, heads]  # z, xBC, dt
        self.in_proj = nn.Linear(config.hidden_size, sum(self.widths), bias=bias)
        self.conv1d = Conv1d(config.conv_dim, config.conv_kernel, config.use_conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = RMSNorm(inner, config.norm_eps)
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=bias)

    def forward(self, u: Tensor, packing: Packing, state: MambaState | None) -> Tensor:
        zxBCdt = self.in_proj(u)
        if state is not None and u.shape[1] == 1:
            y, z = self._step(zxBCdt[:, 0], state)[:, None], None
        else:
            z, xBC, dt = zxBCdt.split(self.widths, dim=-1)
            y = self._scan(xBC, dt, packing.seq_idx, state)
        y = rmsnorm_fn(
            y, self.norm.weight, None, z=z, eps=self.norm.eps,
            group_size=self.config.d_inner // self.config.n_groups, norm_before_gate=False,
        )  # fmt: skip
        return self.out_proj(y)

    def _scan(
        self, xBC: Tensor, dt: Tensor, seq_idx: Tensor | None, state: MambaState | None
    ) -> Tensor:
        x, B, C = self._convolve(xBC, seq_idx, state)
        return self._recur(x, dt, B, C, seq_idx, state)

    def _convolve(
        self, xBC: Tensor, seq_idx: Tensor | None, state: MambaState | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x, B and C behind the convolution; the state's columns go on."""
        columns = xBC.transpose(1, 2)
        before = None if state is None else state.conv[..., 1:]
        mixed = causal_conv1d_fn(
            columns, self.conv1d.weight.squeeze(1), self.conv1d.bias,
            seq_idx=seq_idx, initial_states=before, activation="silu",
        )  # fmt: skip
        if state is not None:
            state.push_conv(columns)
        return self._split(cast(Tensor, mixed).transpose(1, 2))

    def _recur(
        self,
        x: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        seq_idx: Tensor | None,
        state: MambaState | None,
    ) -> Tensor:
        """(batch, seqlen, d_inner), what the scan makes of them; the SSM state goes on."""
        result = mamba_chunk_scan_combined(
            x, dt, self._A(), B, C, self.config.chunk_size,
            D=_wide(self.D), dt_bias=_wide(self.dt_bias), dt_softplus=True,
            dt_limit=self.config.time_step_limit, seq_idx=seq_idx,
            initial_states=None if state is None else state.ssm,
            return_final_states=state is not None,
        )  # fmt: skip
        if state is None:
            return cast(Tensor, result).flatten(2)
        y, last = result
        state.ssm.copy_(last)
        return y.flatten(2)

    def _step(self, zxBCdt: Tensor, state: MambaState) -> Tensor:
        """One token through convolution, scan and gate. (`_scan` leaves the gate to the norm.)"""
        if state.pending is not None:
            return self._replayed_step(zxBCdt, state)
        y = mamba2_decode_step(
            zxBCdt, state.ring, state.ssm, state.position,
            self.conv1d.weight.squeeze(1), self.conv1d.bias, self.dt_bias, self.A_log, self.D,
            self.config.time_step_limit,
        )  # fmt: skip
        state.position += 1
        return y

    def _replayed_step(self, zxBCdt: Tensor, state: MambaState) -> Tensor:
        """`_step` that keeps the token pending and writes the state now and then."""
        assert state.pending is not None
        z, xBC, dt = zxBCdt.split(self.widths, dim=-1)
        mixed = causal_conv1d_update(
            xBC, state.ring, self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu",
            cache_seqlens=state.position,
        )  # fmt: skip
        x, B, C = self._split(mixed)
        y = replay_state_update(
            state.behind, *state.pending.tensors, state.position, x, dt, self._A(), B, C,
            _wide(self.D), z.view(x.shape), _wide(self.dt_bias), True, self.config.time_step_limit,
        )  # fmt: skip
        state.position += 1
        return y.flatten(1)

    def _A(self) -> Tensor:
        return -torch.exp(_wide(self.A_log))

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., nheads, headdim), B and C (..., ngroups, d_state)."""
        config = self.config
        width = config.n_groups * config.ssm_state_size
        x, B, C = xBC.split([config.d_inner, width, width], dim=-1)
        B, C = (t.unflatten(-1, (config.n_groups, config.ssm_state_size)) for t in (B, C))
        return x.unflatten(-1, (config.mamba_num_heads, config.mamba_head_dim)), B, C


class Block(nn.Module):
    """One layer of the pattern: x + mixer(norm(x)).

    With `gradient_checkpointing` training keeps the layer's input alone and computes the layer
    again in the backward pass.
    """

    def __init__(self, kind: str, config: BackboneConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        mlp = GatedMlp if config.family == "qwen2" else Mlp
        kinds = {MAMBA: Mamba2, ATTENTION: Attention, EXPERTS: MixtureOfExperts}
        self.mixer = kinds.get(kind, mlp)(config)

    def forward(
        self, x: Tensor, packing: Packing, state: AttentionState | MambaState | None
    ) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled() and state is None:
            return x + checkpoint(self._mix, x, packing, use_reentrant=False)
        return x + self.mixer(self.norm(x), packing, state)

    def _mix(self, x: Tensor, packing: Packing) -> Tensor:
        return self.mixer(self.norm(x), packing, None)


class HybridBackbone(LayerStack):
    """Embeddings, layers with compression stages between them, final norm and vocabulary head.

    Attributes:
        replay: the tokens of a batch that are decoded per write of the Mamba-2 states; None writes
            them at every step. 8 moves 0.58 of the bytes. Of a batch of one it changes nothing.
    """

    replay: int | None = None

    def __init__(self, config: BackboneConfig, stages: tuple[CompressionStage, ...] = ()) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(kind, config) for kind in config.pattern)
        self.transv = nn.ModuleList(TransV(stage, config) for stage in stages)
        self.norm_f = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embeddings.weight

    def set_stages(self, stages: tuple[CompressionStage, ...]) -> None:
        """Replace the compression stages, as training does that lowers `keep` step by step.

        The transfer before a layer keeps its weights while a stage before that layer transfers.

        Raises:
            ValueError: the stages do not fit the backbone or each other, or one transfers before a
                layer for which the model holds no transfer weights; the model is as before.
        """
        check_stages(stages, self.config)
        own = cast(Iterable[TransV], self.transv)
        held = {module.stage.layer: module for module in own}
        with_weights = [layer for layer, module in held.items() if module.stage.transfer]
        for i, stage in enumerate(stages):
            if stage.transfer and stage.layer not in with_weights:
                layers = ", ".join(map(str, with_weights)) or "there is none"
                rule = f"be False but before a layer with transfer weights ({layers})"
                fail(f"stages[{i}]", "transfer", rule, f"True before layer {stage.layer}")
        modules = []
        for stage in stages:
            module = held.get(stage.layer)
            if module is None or module.stage.transfer != stage.transfer:
                module = TransV(stage, self.config)
            module.stage = stage
            modules.append(module)
        self.transv = nn.ModuleList(modules)

    def with_stages(self, stages: tuple[CompressionStage, ...]) -> HybridBackbone:
        """This backbone with other stages, on the same weights; this one is not touched.

        What is done to the weights or the layers of one (training, moving, hooks) is done to both.
        Stages that this one is given later are not the other's.

        Raises:
            ValueError: as `set_stages`.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)
        # set_stages changes a module's stage in place
        other.transv = nn.ModuleList([copy.copy(module) for module in self.transv])
        other.set_stages(stages)
        return other

    def logits(self, hidden: Tensor) -> Tensor:
        """(batch, n, d_model) of the residual stream -> (batch, n, vocab) float32 logits; float64
        ones of a float64 model."""
        return _wide(self.lm_head(self.norm_f(hidden)))
