"""The states of a request between calls: keys and values, convolution and SSM states.

They are allocated once per request and written in place. An attention layer's capacity is the
number of tokens that reach it, few after a compression stage; a Mamba-2 layer's state has constant
size. The model itself holds no state of a request.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timeviper_fast.config import ATTENTION, MAMBA, BackboneConfig
from timeviper_fast.errors import ArgumentError

__all__ = ["AttentionState", "HybridCache", "MambaState"]


class AttentionState:
    """Keys and values of one attention layer.

    Attributes:
        key, value: (batch, capacity, nkvheads, headdim); the first `length` tokens are written.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        device: torch.device | str | None,
        dtype: torch.dtype,
    ) -> None:
        self.key = torch.empty(shape, device=device, dtype=dtype)
        self.value = torch.empty_like(self.key)
        self.length = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next tokens' keys and values; return views of everything stored.

        Raises:
            ValueError: the tokens exceed the capacity; nothing was written.
        """
        stop, capacity = self.length + key.shape[1], self.key.shape[1]
        if stop > capacity:
            raise ArgumentError("cache", "tokens", f"fit its capacity of {capacity}", stop)
        self.key[:, self.length : stop] = key
        self.value[:, self.length : stop] = value
        self.length = stop
        return self.key[:, :stop], self.value[:, :stop]

    @property
    def nbytes(self) -> int:
        return self.key.nbytes + self.value.nbytes


class MambaState:
    """State of one Mamba-2 layer.

    Attributes:
        ring: (batch, conv_dim, conv_kernel), channels contiguous: the last columns that entered the
            convolution. Column t lies in slot t % conv_kernel, so a decode step writes one slot.
        position: (batch,) int32, the number of the next column. It is kept on the device to avoid a
            host sync.
        ssm: (batch, nheads, headdim, d_state), float32.
    """

    def __init__(
        self,
        batch: int,
        config: BackboneConfig,
        device: torch.device | str | None,
        dtype: torch.dtype,
    ) -> None:
        slots = (batch, config.conv_kernel, config.conv_dim)
        self.ring = torch.zeros(slots, device=device, dtype=dtype).transpose(1, 2)
        self.position = torch.zeros(batch, device=device, dtype=torch.int32)
        heads = (batch, config.mamba_num_heads, config.mamba_head_dim, config.ssm_state_size)
        self.ssm = torch.zeros(heads, device=device, dtype=torch.float32)

    @property
    def conv(self) -> Tensor:
        """(batch, conv_dim, conv_kernel), a copy of `ring` in order, the oldest column first."""
        slots = torch.arange(self.ring.shape[2], device=self.ring.device)
        slots = (self.position[:, None] + slots) % len(slots)
        return self.ring.gather(2, slots[:, None].expand_as(self.ring))

    def push_conv(self, columns: Tensor) -> None:
        """Append `columns` (batch, conv_dim, seqlen); the newest conv_kernel columns are kept."""
        width = self.ring.shape[2]
        kept = self.conv[..., min(columns.shape[2], width) :]
        self.ring.copy_(torch.cat([kept, columns[..., -width:]], dim=2))
        self.position.zero_()

    @property
    def nbytes(self) -> int:
        return self.ring.nbytes + self.position.nbytes + self.ssm.nbytes


class HybridCache:
    """One state per Mamba-2 or attention layer, None for MLP layers.

    Args:
        config: the backbone's shape.
        capacities: tokens that each layer must hold at most (one number per layer; read at
            attention layers only): prompt tokens that reach it plus tokens to generate.
        batch: sequences side by side.
        device, dtype: of keys, values and convolution states; SSM states are float32.
    """

    def __init__(
        self,
        config: BackboneConfig,
        capacities: Sequence[int],
        *,
        batch: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(capacities) != config.num_hidden_layers:
            raise ArgumentError(
                "HybridCache",
                "capacities",
                f"have one number per layer ({config.num_hidden_layers})",
                len(capacities),
            )
        self.batch = batch
        self.layers: list[AttentionState | MambaState | None] = []
        for kind, capacity in zip(config.pattern, capacities):
            if kind == ATTENTION:
                shape = (batch, capacity, config.num_key_value_heads, config.head_dim)
                self.layers.append(AttentionState(shape, device, dtype))
            elif kind == MAMBA:
                self.layers.append(MambaState(batch, config, device, dtype))
            else:
                self.layers.append(None)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that the states occupy."""
        return sum(state.nbytes for state in self.layers if state is not None)
