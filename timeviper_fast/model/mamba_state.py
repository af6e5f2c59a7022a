"""The state of one Mamba-2 layer of a request, and the tokens that are not written into it yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from timeviper_fast.config import BackboneConfig
from timeviper_fast.errors import fail, is_integer
from tvkernels import replay_flush

__all__ = ["MambaState", "Pending"]


@dataclass(frozen=True)
class Pending:
    """Inputs of the last tokens of each row, as `tvkernels.replay_state_update` keeps them.

    Attributes:
        x: (batch, 2 * capacity, nheads, headdim), the model's dtype.
        dt: (batch, 2 * capacity, nheads, 2), float32 (float64 of a float64 model).
        B: (batch, 2 * capacity, ngroups, d_state), the model's dtype.
        written: (batch, nheads) int32, the tokens that the state contains.
    """

    x: Tensor
    dt: Tensor
    B: Tensor
    written: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.dt, self.B, self.written

    def rows(self, rows: slice) -> Pending:
        """Some rows, on the same memory."""
        return Pending(*(t[rows] for t in self.tensors))


class MambaState:
    """State of one Mamba-2 layer.

    Attributes:
        ring: (batch, conv_dim, conv_kernel), channels contiguous: the last columns that entered the
            convolution. Column t lies in slot t % conv_kernel, so a decode step writes one slot.
        position: (batch,) int32, the number of the next column. It is kept on the device to avoid a
            host sync.
        pending: None, or after `replay` the tokens that are not in `behind` yet.
        behind: the state without the pending tokens; `ssm` is the one with them.
    """

    pending: Pending | None = None
    behind: Tensor

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

    @classmethod
    def of(cls, conv: Tensor, ssm: Tensor) -> MambaState:
        """A state with the columns `conv`, in order, and `ssm`, which is not copied."""
        state = object.__new__(cls)
        state.ring = conv.transpose(1, 2).contiguous().transpose(1, 2)
        state.position = torch.zeros(len(conv), device=conv.device, dtype=torch.int32)
        state.ssm = ssm
        return state

    @property
    def ssm(self) -> Tensor:
        """(batch, nheads, headdim, d_state), float32. Reading it writes what is pending first."""
        self.flush()
        return self.behind

    @ssm.setter
    def ssm(self, ssm: Tensor) -> None:
        self.behind = ssm

    def replay(self, capacity: int) -> None:
        """From now on decode steps write the state once per `capacity` tokens.

        Raises:
            ValueError: `capacity` is not an int of at least 1.
        """
        if not is_integer(capacity) or capacity < 1:
            fail("replay", "capacity", "be an int of at least 1", capacity)
        self.flush()
        batch, nheads, headdim, d_state = self.behind.shape
        groups = (self.ring.shape[1] - nheads * headdim) // (2 * d_state)
        slots, dtype = 2 * capacity, self.ring.dtype
        self.pending = Pending(
            self.ring.new_empty(batch, slots, nheads, headdim),
            self.ring.new_empty(
                batch, slots, nheads, 2, dtype=torch.promote_types(dtype, torch.float32)
            ),
            self.ring.new_empty(batch, slots, groups, d_state),
            self.position[:, None].repeat(1, nheads),
        )

    def flush(self) -> None:
        """Write the pending tokens into the state."""
        if self.pending is not None:
            replay_flush(self.behind, *self.pending.tensors, self.position)

    @property
    def conv(self) -> Tensor:
        """(batch, conv_dim, conv_kernel), a copy of `ring` in order, the oldest column first."""
        slots = torch.arange(self.ring.shape[2], device=self.ring.device)
        slots = (self.position[:, None] + slots) % len(slots)
        return self.ring.gather(2, slots[:, None].expand_as(self.ring))

    def push_conv(self, columns: Tensor) -> None:
        """Append `columns` (batch, conv_dim, seqlen); the newest conv_kernel columns are kept."""
        self.flush()
        width = self.ring.shape[2]
        kept = self.conv[..., min(columns.shape[2], width) :]
        self.ring.copy_(torch.cat([kept, columns[..., -width:]], dim=2))
        self.position.zero_()
        if self.pending is not None:
            self.pending.written.zero_()

    def fork(self, batch: int, room: int = 0) -> MambaState:
        """A copy of the state for each of `batch` rows: steps write into their state."""
        fork = object.__new__(MambaState)
        # clone the memory as it lies: channels stay contiguous
        ring = self.ring.transpose(1, 2).expand(batch, -1, -1)
        fork.ring = ring.clone(memory_format=torch.contiguous_format).transpose(1, 2)
        fork.position = self.position.expand(batch).clone()
        fork.ssm = self.ssm.expand(batch, -1, -1, -1).clone(memory_format=torch.contiguous_format)
        return fork

    def row(self, row: int) -> MambaState:
        """A batch of one on the same memory."""
        one = object.__new__(MambaState)
        rows = slice(row, row + 1)
        one.ring, one.position, one.ssm = self.ring[rows], self.position[rows], self.ssm[rows]
        one.pending = None if self.pending is None else self.pending.rows(rows)
        return one

    @property
    def nbytes(self) -> int:
        held = () if self.pending is None else self.pending.tensors
        return sum(t.nbytes for t in (self.ring, self.position, self.behind, *held))
