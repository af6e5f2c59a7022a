"""Videos that were read, kept by their bytes: the one that was asked longest ago leaves first."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import torch

from timeviper_fast.inference.request import Opening
from timeviper_fast.inference.session import Session

__all__ = ["Key", "Sessions", "bytes_held"]

# digest of the video's bytes, and how it is read
Key = tuple[str, Opening]


def bytes_held(session: Session) -> int:
    """Bytes that a session holds, on its model's device and in host memory."""
    places = {session.model.device, torch.device("cpu")}
    return sum(session.ended.nbytes_on(place) for place in places)


class Sessions:
    """Sessions of one model.

    Args:
        most_bytes: of all sessions. One that is larger alone is not kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.nbytes = most_bytes, 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[Key, tuple[Session, int]] = OrderedDict()
        # metrics are read by other threads
        self._turn = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Session | None:
        """The session of a video, which becomes the one that was asked last; None without one."""
        with self._turn:
            found = self._kept.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: Key, session: Session) -> None:
        """Keep a session; others leave until the bytes suffice."""
        size = bytes_held(session)
        with self._turn:
            if key in self._kept or size > self.most_bytes:
                return
            while self.nbytes + size > self.most_bytes:
                _, (_, freed) = self._kept.popitem(last=False)
                self.nbytes -= freed
            self._kept[key] = (session, size)
            self.nbytes += size
