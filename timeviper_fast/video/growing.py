"""Files that are being written: read what is there, wait for more, notice the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from threading import Event
from time import monotonic

from timeviper_fast.errors import VideoError
from timeviper_fast.video.boxes import boxes, is_boxed

__all__ = ["GrowingFile", "Patience", "growing_file"]


class Patience:
    """Decides how long a source that grows is waited for.

    Args:
        quiet: seconds without growth after which the source has ended; None waits until told.
        poll: seconds between two looks at the source.
    """

    def __init__(self, quiet: float | None, poll: float) -> None:
        self.quiet, self._poll = quiet, poll
        self._told = Event()
        self._waited = 0.0

    def end(self) -> None:
        """Nothing more will be written. May be called from any thread."""
        self._told.set()

    @property
    def told(self) -> bool:
        """Whether `end` was called."""
        return self._told.is_set()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is waited for. Look before reading, and read once more then."""
        return self.told or (self.quiet is not None and self._waited >= self.quiet)

    def grew(self) -> None:
        """The source has grown: the quiet time starts anew."""
        self._waited = 0.0

    def wait(self, least: float = 0.0) -> None:
        """Sleep until the next look, `least` seconds or more, or until told.

        Only the time spent here is quiet time: a reader that is slow does not end its source.
        """
        before = monotonic()
        self._told.wait(max(self._poll, least))
        self._waited += monotonic() - before


class GrowingFile:
    """A file as PyAV reads it: at its end, reading waits for more.

    Attributes:
        name: the path.
        fault: what ended the file too early, "" if nothing did.
    """

    def __init__(self, path: Path, file: FileIO, patience: Patience) -> None:
        self.name, self.fault = str(path), ""
        self._path, self._file, self._patience = path, file, patience
        status = os.fstat(file.fileno())
        self._identity = (status.st_dev, status.st_ino)

    def read(self, size: int) -> bytes:
        """At most `size` bytes, at least one but behind the end."""
        while True:
            is_over = self._patience.is_over
            data = self._file.read(size)
            if data:
                self._patience.grew()
                return data
            self.fault = self._broken()
            if is_over or self.fault:
                return b""
            self._patience.wait()

    def _broken(self) -> str:
        """Why no more can come of this file; "" if it may grow."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return "the file vanished while it was read"
        if (status.st_dev, status.st_ino) != self._identity:
            return "another file took its place while it was read"
        if status.st_size < self._file.tell():
            return "the file became shorter while it was read"
        return ""


class WholeFile(GrowingFile):
    """A file that is whole, in which PyAV may also jump."""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def growing_file(path: Path, patience: Patience) -> Iterator[GrowingFile]:
    """The file for PyAV, closed at the end of the block.

    Raises:
        VideoError: the file stays empty, or it is an mp4 or mov file whose index stands behind the
            frames, and is not written yet.
    """
    # unbuffered: a buffered file may keep an end that it has seen
    with path.open("rb", buffering=0) as file:
        kind = GrowingFile
        if not _index_is_first(path, file, patience):
            # the index is written last, so there is nothing to wait for
            patience.end()
            kind = WholeFile
        file.seek(0)
        yield kind(path, file, patience)


def _index_is_first(path: Path, file: FileIO, patience: Patience) -> bool:
    """Whether the file can be read from front to back; it waits until the file tells."""
    seen = 0
    while True:
        is_over = patience.is_over
        file.seek(0)
        head, size = file.read(8), os.fstat(file.fileno()).st_size
        if len(head) == 8:
            if not is_boxed(head):
                return True
            whole = [box.kind for box in boxes(file, 0, size) if box.end <= size]
            begun = [box.kind for box in boxes(file, 0, size)]
            if b"moov" in whole:
                return b"mdat" not in whole[: whole.index(b"moov")]
            if b"mdat" in begun:
                what = "it is an mp4 or mov file whose index is written when the recording ends"
                remedy = "wait for the end, or record mkv, ts or fragmented mp4"
                raise VideoError(f"{path}: {what}", remedy=remedy)
        if is_over:
            raise VideoError(f"{path}: " + ("it is not whole" if size else "the file is empty"))
        if size > seen:
            seen = size
            patience.grew()
        patience.wait()
