"""Files that are written whole or not at all, and by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

__all__ = ["lock", "naming", "whole_file"]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError of the block that names none, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`; what the block writes there replaces it at the end.

    Readers see the old file or the new one, and after a power failure too: the content is flushed
    to the disk before it gets its name. An error in the block leaves `target` as it was and no
    temporary file; only a killed process leaves one. Its name begins with a dot and ends with the
    target's suffix. Missing directories are made. A full disk is an OSError that names `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # part of the name only, which may have the longest length that there is
    partial = target.with_name(f".{target.stem[:40]}.{uuid4().hex}.partial{target.suffix}")
    try:
        with naming(target):
            yield partial
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed; False if it is locked already.

    The file system must have locks, as local disks and NFS 4 do.
    """
    # imported here: Windows has no such module, and commands that lock nothing run there
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
