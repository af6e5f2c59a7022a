"""Files that are written atomically, and keys of media files."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from timeviper_fast.atomic import whole_file

__all__ = ["media_key", "write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: readers see the complete file or none."""
    with whole_file(path) as partial:
        partial.write_bytes(data)


def media_key(path: Path) -> str:
    """A hash of a media file's path, size and modification time; for a folder, of all its files.

    Raises:
        OSError: the file does not exist.
    """
    path = path.absolute()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    told = [f"{file}\0{(stat := file.stat()).st_size}\0{stat.st_mtime_ns}" for file in files]
    return sha256("\0".join([str(path), *told]).encode(errors="surrogateescape")).hexdigest()
