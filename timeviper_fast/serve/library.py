"""The videos under the media folder, for people who pick one from a list."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from timeviper_fast.video.directory import VIDEO_SUFFIXES, natural

__all__ = ["Library", "Listed", "list_videos"]

# images of these kinds may be animated
_SUFFIXES = frozenset({*VIDEO_SUFFIXES, ".gif", ".webp"})


@dataclass(frozen=True)
class Listed:
    """A video of the list.

    Attributes:
        name: its path under the folder, as requests name it.
        bytes: of its file.
    """

    name: str
    bytes: int


@dataclass(frozen=True)
class Library:
    """Videos under a folder.

    Attributes:
        videos: in the order of their names; "clip 2" stands before "clip 10".
        complete: whether these are all.
    """

    videos: tuple[Listed, ...]
    complete: bool


def list_videos(root: Path, *, most: int = 200, entries: int = 10_000) -> Library:
    """The files under a folder whose suffix is that of a video or an animated image.

    Hidden files and folders are left out, and so are links that lead out of the folder, links to
    folders, and names that are no UTF-8. A folder that cannot be read counts as empty.

    Args:
        root: the folder, with all of its links resolved.
        most: videos that are listed.
        entries: files and folders that are looked at, which bounds the time; folders near the root
            come first.
    """
    found: list[Listed] = []
    folders, left = deque([root]), entries
    while folders and left > 0:
        inside = _entries(folders.popleft(), left + 1)
        left -= len(inside)
        for entry in inside:
            if entry.name[0] == ".":
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif (video := _video(entry, root)) is not None:
                found.append(video)
    found.sort(key=lambda video: natural(video.name))
    return Library(tuple(found[:most]), left >= 0 and not folders and len(found) <= most)


def _entries(folder: Path, most: int) -> list[os.DirEntry[str]]:
    """What lies in a folder, at most so many entries."""
    try:
        with os.scandir(folder) as inside:
            return list(islice(inside, most))
    except OSError:
        return []


def _video(entry: os.DirEntry[str], root: Path) -> Listed | None:
    """The entry as a video, if it is one that may be asked about."""
    path = Path(entry.path)
    if path.suffix.lower() not in _SUFFIXES:
        return None
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
        if not entry.is_file() or not path.resolve().is_relative_to(root):
            return None
        return Listed(name, entry.stat().st_size)
    except (OSError, RuntimeError, UnicodeEncodeError):
        return None
