"""Who works on what, and how often a process ended while it worked on it.

A video may kill its process: a decoder crashes, or memory runs out. The next process would take the
same video and end as well. So each attempt is marked before it begins, and the mark outlives it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO

from timeviper_fast.atomic import lock

__all__ = ["MOST_ATTEMPTS", "Attempts", "hashed"]

# the attempt that is given up instead
MOST_ATTEMPTS = 3


def hashed(folder: Path, key: str, suffix: str) -> Path:
    """The file of a key, in one of 256 subfolders: 100,000 keys are 390 files in each."""
    name = sha256(key.encode()).hexdigest()
    return folder / name[:2] / f"{name[2:34]}{suffix}"


class Attempts:
    """Marks of attempts in a folder, which processes on one machine or file system share.

    Args:
        folder: made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def claim(self, key: str) -> Iterator[int | None]:
        """Work on a key alone; the block gets the number of this attempt, from 1 on.

        None: another process works on it. The mark goes when the block ends, and when it is
        interrupted or cannot write; any other error, and a process that ends, leave it.
        """
        path = hashed(self.folder, key, ".attempts")
        with _opened(path) as mark:
            # no link: another process ended this key's work after the file was opened here
            if not lock(mark) or os.fstat(mark.fileno()).st_nlink == 0:
                yield None
                return
            try:
                mark.write(b"x")
                os.fsync(mark.fileno())
                yield os.fstat(mark.fileno()).st_size
            except (KeyboardInterrupt, GeneratorExit, SystemExit, OSError):
                path.unlink(missing_ok=True)
                raise
            path.unlink(missing_ok=True)

    def remove_if_empty(self) -> None:
        """Remove the folder, unless it holds a mark."""
        for folder in (*self.folder.glob("??"), self.folder):
            with suppress(OSError):
                folder.rmdir()

    def open(self) -> int:
        """How many keys have a mark: they are worked on, or their process ended."""
        return sum(1 for _ in self.folder.glob("??/*.attempts"))


def _opened(path: Path) -> IO[bytes]:
    """A mark, opened without a buffer; another process may remove its folder meanwhile."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return path.open("a+b", buffering=0)
