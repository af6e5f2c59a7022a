"""Replay counted memory accesses through a cache: the traffic between a GPU's L2 and memory.

The cache is exact LRU over lines of 128 bytes, each with four sectors of 32 that are fetched, and
written back, one by one. It starts empty, writes without fetching, and is flushed at the end.
Not modelled: sets and hashing, the two halves of a large L2, streaming hints, L1.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np

from benchmarks.counting.counter import SECTOR, Access, Launch

SECTORS_OF_LINE = 4
# two programs on each of the 132 processors of an H200
RESIDENT = 264
# the fewest programs that show how neighbours in a grid share data
NEIGHBOURS = 8


class Traffic(NamedTuple):
    """Bytes between the cache and memory."""

    read: int
    write: int


def traffic(launches: Iterable[Launch], capacity: float, resident: int = 1) -> Traffic:
    """Bytes that pass a cache of `capacity` bytes.

    Args:
        launches: in order; the cache keeps its content from one to the next.
        capacity: bytes; float("inf") never evicts.
        resident: programs that advance together, one access each in turn; the next program in
            hardware order starts when one of them ends. 1 runs one program after the other.
    """
    cache = _Cache(capacity // (SECTOR * SECTORS_OF_LINE))
    for launch in launches:
        for access in in_order(launch.accesses, resident):
            cache.touch(access)
    return cache.flush()


def together(launches: Iterable[Launch], shares: Iterable[float], capacity: float) -> Traffic:
    """Bytes where as many programs as the GPU holds advance together, each launch by itself.

    Args:
        shares: for each launch, the fraction of its grid that was counted. The same fraction of
            RESIDENT programs advances, at least NEIGHBOURS, each with its share of the cache.
        capacity: bytes of the whole cache, which is empty when a launch begins.
    """
    moved = []
    for launch, share in zip(launches, shares, strict=True):
        resident = max(NEIGHBOURS, round(RESIDENT * share))
        moved.append(traffic([launch], capacity * resident / RESIDENT, resident))
    return Traffic(sum(each.read for each in moved), sum(each.write for each in moved))


def in_order(accesses: list[Access], resident: int) -> Iterator[Access]:
    """The accesses of one launch as `resident` programs at a time would make them."""
    by_program = sorted(accesses, key=lambda access: access.program)
    waiting = (deque(own) for _, own in groupby(by_program, key=lambda access: access.program))
    active = deque(islice(waiting, resident))
    while active:
        program = active.popleft()
        yield program.popleft()
        if not program:
            program = next(waiting, program)
        if program:
            active.append(program)


class _Cache:
    """lines: from line number to (sectors present, sectors to write back), as 4-bit masks."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.lines: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self.read = self.written = 0

    def touch(self, access: Access) -> None:
        lines, first = np.unique(access.sectors // SECTORS_OF_LINE, return_index=True)
        bits = 1 << (access.sectors % SECTORS_OF_LINE)
        masks = np.bitwise_or.reduceat(bits, first)
        for line, mask in zip(lines.tolist(), masks.tolist()):
            present, dirty = self.lines.pop(line, (0, 0))
            if access.writes:
                dirty |= mask
            else:
                self.read += (mask & ~present).bit_count()
            self.lines[line] = (present | mask, dirty)
            if len(self.lines) > self.capacity:
                _, (_, evicted) = self.lines.popitem(last=False)
                self.written += evicted.bit_count()

    def flush(self) -> Traffic:
        dirty = sum(dirty.bit_count() for _, dirty in self.lines.values())
        return Traffic(SECTOR * self.read, SECTOR * (self.written + dirty))
