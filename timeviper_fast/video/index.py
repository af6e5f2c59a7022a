"""Which packet holds which frame: positions in display order, packet numbers in file order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Index", "Stretch"]

# stretches this close are decoded as one: draining and refilling the decoder costs more
_JOIN_PACKETS = 8


class Stretch(NamedTuple):
    """Packets start .. stop - 1, which must be decoded to get the frames at positions `wanted`."""

    start: int
    stop: int
    wanted: list[int]


class Index:
    """The frames of a stream. Frames that are displayed before the first key frame are none.

    Args:
        order: (n,) packet numbers in display order, hidden packets included.
        keys, shown, damaged: (n,) bool, by packet number.

    Attributes:
        packet_of: (T,) int32, the packet of each position.
        position_of: (n,) int32, the position of each packet; negative before the first key frame.
            That of a hidden packet is the position of the frame displayed after it.
        shown: (n,) bool, the packet is displayed.
        skipped: frames displayed before the first key frame.
        unsound: (T,) bool, frames that need a damaged packet; None if there are none.
    """

    def __init__(
        self, order: np.ndarray, keys: np.ndarray, shown: np.ndarray, damaged: np.ndarray
    ) -> None:
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        # a key frame behind another one in the file and before it on the screen starts nothing
        numbers = np.flatnonzero(keys)
        numbers = numbers[rank[numbers] >= np.maximum.accumulate(rank[numbers])]
        before = np.zeros(len(order) + 1, np.int32)
        np.cumsum(shown[order], out=before[1:])
        self.skipped = int(before[rank[numbers[0]]]) if len(numbers) else int(before[-1])
        self.position_of = before[rank] - np.int32(self.skipped)
        self.packet_of = order[shown[order]][self.skipped :].astype(np.int32)
        self.shown = shown
        self._key_numbers, self._key_positions = numbers, self.position_of[numbers]
        self.unsound = self._reached(damaged) if damaged.any() else None

    def whole(self, positions: list[int]) -> Stretch:
        """All packets up to the last one that `positions` need, as one stretch."""
        last = int(self.packet_of[positions].max())
        return Stretch(int(self._key_numbers[0]), last + 1, positions.copy())

    def stretches(self, positions: list[int]) -> list[Stretch]:
        """The packets to decode for `positions` (ascending); those close together are joined."""
        found: list[Stretch] = []
        starts = self.starts(np.array(positions, np.int64)).tolist()
        for position, start in zip(positions, starts):
            stop = int(self.packet_of[position]) + 1
            if found and start <= found[-1].stop + _JOIN_PACKETS:
                found[-1].wanted.append(position)
                found[-1] = found[-1]._replace(stop=max(found[-1].stop, stop))
            else:
                found.append(Stretch(start, stop, [position]))
        return found

    def starts(self, positions: np.ndarray) -> np.ndarray:
        """The packets of the key frames from which the frames at `positions` must be decoded.

        That is the last key frame in display order, not in file order: a frame that is stored
        behind a key frame but displayed before it refers to the key frame before.
        """
        keys = np.searchsorted(self._key_positions, positions, "right") - 1
        return self._key_numbers[keys]

    def _reached(self, damaged: np.ndarray) -> np.ndarray:
        """The frames with a damaged packet between their key frame's packet and their own."""
        count = np.zeros(len(damaged) + 1, np.int32)
        np.cumsum(damaged, out=count[1:])
        starts = self.starts(np.arange(len(self.packet_of)))
        return count[self.packet_of + 1] > count[starts]
