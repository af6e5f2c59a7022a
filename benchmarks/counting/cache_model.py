"""Replay counted memory accesses through a cache: the traffic between a GPU's L2 and memory.

The cache is exact LRU over lines of 128 bytes, each with four sectors of 32 that are fetched, and
written back, one by one. It starts empty, writes without fetching, and is flushed at the end.
Not modelled: sets and hashing, the two halves of a large L2, streaming hints, L1.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import attrgetter

import numpy as np

from benchmarks.counting.counter import SECTOR, Access, Launch

SECTORS_OF_LINE = 4
# two programs on each of the 132 processors of an H200
RESIDENT = 264
# the fewest programs that show how neighbours in a grid share data
NEIGHBOURS = 8


def traffic(launches: Iterable[Launch], capacity: float, resident: int = 1) -> tuple[int, int]:
    """Bytes read from and written to memory behind a cache of `capacity` bytes.

    Args:
        launches: in order; the cache keeps its content from one to the next.
        capacity: bytes; float("inf") never evicts.
        resident: programs that advance together, one access each in turn; the next program in
            hardware order starts when one of them ends. 1 runs one program after the other.
    """
    # from line number to (sectors present, sectors to write back), as 4-bit masks
    lines: OrderedDict[int, tuple[int, int]] = OrderedDict()
    most, read, written = capacity // (SECTOR * SECTORS_OF_LINE), 0, 0
    for launch in launches:
        for access in in_order(launch.accesses, resident):
            for line, mask in _masks(access.sectors):
                present, dirty = lines.pop(line, (0, 0))
                if access.writes:
                    dirty |= mask
                else:
                    read += (mask & ~present).bit_count()
                lines[line] = (present | mask, dirty)
                if len(lines) > most:
                    written += lines.popitem(last=False)[1][1].bit_count()
    written += sum(dirty.bit_count() for _, dirty in lines.values())
    return SECTOR * read, SECTOR * written


def together(
    launches: Iterable[Launch], shares: Iterable[float], capacity: float
) -> tuple[int, int]:
    """Bytes where as many programs as the GPU holds advance together, each launch by itself.

    Args:
        shares: for each launch, the fraction of its grid that was counted. The same fraction of
            RESIDENT programs advances, at least NEIGHBOURS, each with its share of the cache.
        capacity: bytes of the whole cache, which is empty when a launch begins.
    """
    read = written = 0
    for launch, share in zip(launches, shares, strict=True):
        resident = max(NEIGHBOURS, round(RESIDENT * share))
        moved = traffic([launch], capacity * resident / RESIDENT, resident)
        read, written = read + moved[0], written + moved[1]
    return read, written


def in_order(accesses: list[Access], resident: int) -> Iterator[Access]:
    """The accesses of one launch as `resident` programs at a time would make them."""
    program = attrgetter("program")
    waiting = (deque(own) for _, own in groupby(sorted(accesses, key=program), key=program))
    active = deque(islice(waiting, resident))
    while active:
        own = active.popleft()
        yield own.popleft()
        own = own or next(waiting, own)
        active.extend([own] if own else [])


def _masks(sectors: np.ndarray) -> Iterator[tuple[int, int]]:
    """Each line that these sectors lie in, with a bit for each of them."""
    lines, first = np.unique(sectors // SECTORS_OF_LINE, return_index=True)
    bits = np.bitwise_or.reduceat(1 << (sectors % SECTORS_OF_LINE), first)
    return zip(lines.tolist(), bits.tolist())
