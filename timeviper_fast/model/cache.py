"""The states of a request between calls: keys and values, convolution and SSM states.

They are written in place. An attention layer's capacity is the number of tokens that reach it, few
after a compression stage; a Mamba-2 layer's state has constant size. The model itself holds no
state of a request.

A cache can be forked: the fork continues from what was read so far, for several rows at once, and
writes nothing that the original owns. Mamba-2 states are copied; keys and values are shared, as the
fork's prefix, and what the fork appends is its tail.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from timeviper_fast.config import ATTENTION, MAMBA, BackboneConfig
from timeviper_fast.errors import ArgumentError
from timeviper_fast.model.mamba_state import MambaState

__all__ = ["AttentionState", "HybridCache", "enlarged", "placed"]


def enlarged(x: Tensor, written: int, needed: int) -> Tensor:
    """`x` (batch, capacity, ...) if it holds `needed` tokens, else a copy of the `written` ones in
    twice the room: appending n tokens one by one copies O(n) tokens, and never all at each call."""
    if needed <= x.shape[1]:
        return x
    larger = x.new_empty(len(x), max(needed, 2 * x.shape[1]), *x.shape[2:])
    larger[:, :written] = x[:, :written]
    return larger


class AttentionState:
    """Keys and values of one attention layer.

    Attributes:
        key, value: (batch, capacity, nkvheads, headdim), the tail: row r has lengths[r] tokens.
        prefix: keys and values (1 or batch, m, nkvheads, headdim) in front of every row's tail,
            shared with the state this one was forked from and never written; None without.
        lengths: (batch,) int32, tokens of each row's tail; on the device, so that decoding rows of
            unequal lengths needs no host sync.
        longest: the largest of `lengths`.
        even: whether all rows are known to have the same length.
        growing: whether the capacity doubles when it is full.
        fixed: whether each step has the same shapes and addresses: see `fix`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        device: torch.device | str | None,
        dtype: torch.dtype,
        *,
        prefix: tuple[Tensor, Tensor] | None = None,
        growing: bool = False,
    ) -> None:
        self.key = torch.empty(shape, device=device, dtype=dtype)
        self.value = torch.empty_like(self.key)
        self.prefix, self.growing = prefix, growing
        self._whole: AttentionState | None = None
        self.lengths = torch.zeros(shape[0], device=device, dtype=torch.int32)
        self.longest, self.even, self.fixed = 0, True, False

    @classmethod
    def of(cls, key: Tensor, value: Tensor) -> AttentionState:
        """A state that holds `key` and `value` (batch, n, nkvheads, headdim), without a copy."""
        state = cls((len(key), 0, *key.shape[2:]), key.device, key.dtype)
        state.key, state.value, state.longest = key, value, key.shape[1]
        state.lengths.fill_(state.longest)
        return state

    def append(self, key: Tensor, value: Tensor) -> None:
        """Write the next tokens' keys and values (batch, n, nkvheads, headdim) behind each row's.

        Rows of unequal lengths take one token at a time.

        Raises:
            ValueError: the tokens exceed the capacity; nothing was written.
        """
        if self.fixed:
            self._append_one(key, value)
            return
        stop = self.longest + key.shape[1]
        if self.growing:
            self.key = enlarged(self.key, self.longest, stop)
            self.value = enlarged(self.value, self.longest, stop)
        if stop > self.key.shape[1]:
            rule = f"fit its capacity of {self.key.shape[1]}"
            raise ArgumentError("cache", "tokens", rule, stop)
        if self.even:
            self.key[:, self.longest : stop] = key
            self.value[:, self.longest : stop] = value
            self.lengths += key.shape[1]
        else:
            self._append_one(key, value)
        self.longest = stop

    def _append_one(self, key: Tensor, value: Tensor) -> None:
        """One token of each row, at a position that the device alone knows."""
        at = self.lengths.long()[:, None, None, None].expand(-1, 1, *key.shape[2:])
        self.key.scatter_(1, at, key)
        self.value.scatter_(1, at, value)
        self.lengths += 1

    def clear(self) -> None:
        """Hold no token any more."""
        self.lengths.zero_()
        self.longest = 0

    def fix(self) -> None:
        """From now on tokens come one by one, at most as many as there is room for, and nothing
        that a step does depends on how many came, but for values on the device."""
        self.longest, self.even, self.fixed = self.key.shape[1], False, True

    @property
    def written(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the tail as views (batch, longest, nkvheads, headdim)."""
        return self.key[:, : self.longest], self.value[:, : self.longest]

    @property
    def everything(self) -> tuple[Tensor, Tensor]:
        """Keys and values of prefix and tail in one: views without a prefix, else copies."""
        if self.prefix is None:
            return self.written
        parts = zip(self.prefix, self.written)
        key, value = (torch.cat([a.expand(len(b), -1, -1, -1), b], 1) for a, b in parts)
        return key, value

    @property
    def start(self) -> int:
        """Tokens of the prefix."""
        return 0 if self.prefix is None else self.prefix[0].shape[1]

    def select(self, stays: Tensor) -> None:
        """Go on with those tokens alone for which `stays` (longest,) bool on the CPU holds.

        Forks keep the memory that they share: the tokens move to a new buffer of the same size.
        """
        at = stays.nonzero()[:, 0].to(self.key.device)
        for name in ("key", "value"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(old.shape)
            new[:, : len(at)] = old.index_select(1, at)
            setattr(self, name, new)
        self.longest = len(at)
        self.lengths.fill_(len(at))

    def share(self) -> AttentionState:
        """The same tokens, in the same memory until one more is appended: that copies them."""
        one = self._view(slice(None))
        (one.key, one.value), one.growing = self.written, True
        one.lengths = self.lengths.clone()
        return one

    def fork(self, batch: int, room: int) -> AttentionState:
        """`batch` rows that continue from this state, with room for `room` tokens more.

        A state without prefix becomes the fork's prefix, without a copy. Of a fork, the prefix is
        shared and the tail, which is short, is copied.
        """
        own = self.longest if self.prefix is not None else 0
        prefix = self.prefix
        if prefix is None and self.longest:
            prefix = self.written
        shape = (batch, own + room, *self.key.shape[2:])
        fork = AttentionState(shape, self.key.device, self.key.dtype, prefix=prefix)
        if own:
            fork.append(*(x.expand(batch, -1, -1, -1) for x in self.written))
        return fork

    def split(self) -> AttentionState:
        """What is written as a prefix, and what is appended as a tail, in the same memory."""
        if self.prefix is not None or not self.longest:
            return self
        tail = self._view(slice(None))
        tail.key, tail.value = self.key[:, self.longest :], self.value[:, self.longest :]
        tail.prefix, tail._whole, tail.growing = self.written, self, self.growing
        if self.growing:
            # whoever shares this memory may write behind what is written here
            tail.key, tail.value = tail.key[:, :0], tail.value[:, :0]
            tail._whole = None
        tail.lengths, tail.longest = torch.zeros_like(self.lengths), 0
        return tail

    def joined(self) -> AttentionState:
        """Prefix and tail in one: without a copy if `split` made them, else copied."""
        if self.prefix is None:
            return self
        whole, self._whole = self._whole, None
        if whole is None:
            key, value = self.everything
            whole = self._view(slice(None))
            whole.key, whole.value, whole.prefix = key, value, None
        whole.lengths = self.lengths + self.start
        whole.longest = self.start + self.longest
        return whole

    def row(self, row: int) -> AttentionState:
        """A batch of one on the same memory."""
        return self._view(slice(row, row + 1))

    def _view(self, rows: slice) -> AttentionState:
        one = object.__new__(AttentionState)
        one.key, one.value, one.lengths = self.key[rows], self.value[rows], self.lengths[rows]
        one.longest, one.prefix, one._whole = self.longest, self.prefix, None
        one.even, one.growing, one.fixed = True, False, False
        return one

    @property
    def nbytes(self) -> int:
        """Bytes of its own keys and values, without the prefix."""
        return self.key.nbytes + self.value.nbytes


State = AttentionState | MambaState | None


def placed(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; one that leaves a GPU goes to page-locked memory, from where it comes
    back without a wait of the host."""
    if x.device.type == "cuda" and device.type == "cpu":
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)
    return x.to(device, non_blocking=True)


def _on(state: AttentionState | MambaState, device: torch.device) -> State:
    if isinstance(state, AttentionState):
        key, value = state.everything
        return AttentionState.of(placed(key, device), placed(value, device))
    return MambaState.of(placed(state.conv, device), placed(state.ssm, device))


def _attention(state: State, change: Callable[[AttentionState], AttentionState]) -> State:
    return change(state) if isinstance(state, AttentionState) else state


class HybridCache:
    """One state per Mamba-2 or attention layer, None for the others.

    Args:
        config: the backbone's shape.
        capacities: tokens that each layer must hold at most (one number per layer; read at
            attention layers only): prompt tokens that reach it plus tokens to generate. None for a
            layer that has no state yet: a fork makes it.
        batch: sequences side by side.
        device, dtype: of keys, values and convolution states; SSM states are float32.
        growing: whether capacities double when they are full.
    """

    def __init__(
        self,
        config: BackboneConfig,
        capacities: Sequence[int | None],
        *,
        batch: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        growing: bool = False,
    ) -> None:
        if len(capacities) != config.num_hidden_layers:
            raise ArgumentError(
                "HybridCache",
                "capacities",
                f"have one number per layer ({config.num_hidden_layers})",
                len(capacities),
            )
        self.config, self.batch, self.device, self.dtype = config, batch, device, dtype
        self.layers: list[State] = []
        for kind, capacity in zip(config.pattern, capacities):
            if capacity is None:
                self.layers.append(None)
            elif kind == ATTENTION:
                shape = (batch, capacity, config.num_key_value_heads, config.head_dim)
                self.layers.append(AttentionState(shape, device, dtype, growing=growing))
            elif kind == MAMBA:
                self.layers.append(MambaState(batch, config, device, dtype))
            else:
                self.layers.append(None)

    def fork(self, batch: int, rooms: Sequence[int | None], growing: bool = False) -> HybridCache:
        """`batch` rows that continue from these states; nothing they do changes these.

        Args:
            batch: rows of the fork.
            rooms: tokens more that each layer must hold. A layer without a state gets a fresh one
                of this capacity, unless it is None.
        """
        fork = HybridCache(
            self.config,
            [None if state is not None else room for state, room in zip(self.layers, rooms)],
            batch=batch,
            device=self.device,
            dtype=self.dtype,
        )
        for i, (state, room) in enumerate(zip(self.layers, rooms)):
            if state is not None:
                fork.layers[i] = state.fork(batch, room or 0)
        return fork

    def on(self, device: torch.device) -> HybridCache:
        """These states on a device; itself if they lie there.

        The copies are queued in the order in which the layers read them. From page-locked memory
        they do not wait for each other or for the host.
        """
        if torch.device(self.device or "cpu") == device:
            return self
        moved = self._of([None if state is None else _on(state, device) for state in self.layers])
        moved.device = device
        return moved

    def row(self, row: int) -> HybridCache:
        """A batch of one on the same memory; `join` it when it was written."""
        return self._of([None if state is None else state.row(row) for state in self.layers], 1)

    def fix(self) -> None:
        """Let every further step have the same shapes and addresses, as a CUDA graph needs."""
        for state in self.layers:
            if isinstance(state, AttentionState):
                state.fix()

    def replay(self, capacity: int) -> None:
        """Let decode steps write the Mamba-2 states once per `capacity` tokens."""
        for state in self.layers:
            if isinstance(state, MambaState):
                state.replay(capacity)

    def share(self) -> HybridCache:
        """The same states to go on from; nothing that is done with them changes these."""
        return self._of(
            [
                state.fork(self.batch) if isinstance(state, MambaState) else state and state.share()
                for state in self.layers
            ]
        )

    def split(self) -> HybridCache:
        """The same states, whose attention sees what is written as a prefix: the rows that a fork
        would append are then computed as on the fork, to the bit."""
        return self._of([_attention(state, AttentionState.split) for state in self.layers])

    def joined(self) -> HybridCache:
        """States without prefixes again."""
        return self._of([_attention(state, AttentionState.joined) for state in self.layers])

    def _of(self, layers: list[State], batch: int | None = None) -> HybridCache:
        one = copy.copy(self)
        one.layers, one.batch = layers, self.batch if batch is None else batch
        return one

    def join(self, rows: Sequence[HybridCache]) -> None:
        """Take over the lengths of rows, made by `row`, that were written one by one."""
        for i, state in enumerate(self.layers):
            if isinstance(state, AttentionState):
                written = [row.layers[i] for row in rows]
                lengths = [one.longest for one in written if isinstance(one, AttentionState)]
                state.longest, state.even = max(lengths), len(set(lengths)) == 1

    def expect_in_file(self) -> None:
        """Raise an ArgumentError if a file cannot hold all of it."""

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that the states occupy."""
        return sum(state.nbytes for state in self.layers if state is not None)
