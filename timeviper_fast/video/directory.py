"""A directory of images: which of its files are frames, in which order, and what is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from timeviper_fast.errors import VideoError
from timeviper_fast.video.container import is_film
from timeviper_fast.video.images import is_image, is_picture

__all__ = ["VIDEO_SUFFIXES", "Contents", "contents_of", "natural"]

VIDEO_SUFFIXES = (
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gifv",
    ".h264", ".h265", ".hevc", ".ivf", ".m2p", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv",
    ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob",
    ".webm", ".wmv", ".y4m",
)  # fmt: skip
# what systems put beside images
_SYSTEM = frozenset({"desktop.ini", "ehthumbs.db", "thumbs.db"})
_IMAGE, _VIDEO, _OTHER = "image", "video", "file of another kind"
_PLURALS = {"directory": "directories", _OTHER: "files of another kind"}
# so many names of each kind are shown
_NAMED = 3


class Contents(NamedTuple):
    """What of a directory is looked at: `frames`, or the one video; and notes of what is not."""

    frames: list[Path]
    video: Path | None
    notes: list[str]


def contents_of(path: Path) -> Contents:
    """The images of a directory in natural order of their names, or its video.

    A file is an image by its suffix or, whatever its suffix, by its first bytes. One with the
    suffix of an image is a frame even if it cannot be read, so that the others keep their times.
    One video, alone or beside one image (its cover), is read instead; it is known by its suffix or,
    where no suffix tells, by its content.

    Raises:
        VideoError: there is neither image nor video, or there are several videos and no images.
    """
    kinds: dict[str, list[Path]] = {}
    for entry in sorted(path.iterdir(), key=lambda entry: natural(entry.name)):
        kinds.setdefault(_kind(entry), []).append(entry)
    if _VIDEO not in kinds and len(kinds.get(_IMAGE, [])) <= 1:
        _find_films(kinds)
    frames, videos = kinds.get(_IMAGE, []), kinds.get(_VIDEO, [])
    if len(videos) > 1 and len(frames) <= 1:
        found = _counted(_VIDEO, videos)
        raise VideoError(f"{path}: the directory holds {found}; name the video that is meant")
    reads_video = len(videos) == 1 and len(frames) <= 1
    looked_at = _VIDEO if reads_video else _IMAGE
    left_out = ", ".join(_counted(kind, kinds[kind]) for kind in sorted({*kinds} - {looked_at}))
    if not frames and not videos:
        raise VideoError(f"{path}: the directory holds no images ({left_out or 'it is empty'})")
    notes = [f"left out of the directory: {left_out}"] if left_out else []
    return Contents([], videos[0], notes) if reads_video else Contents(frames, None, notes)


def _find_films(kinds: dict[str, list[Path]]) -> None:
    """Move the films among the files of another kind to the videos."""
    others = kinds.pop(_OTHER, [])
    for entry in others:
        kinds.setdefault(_VIDEO if is_film(entry) else _OTHER, []).append(entry)


def _kind(entry: Path) -> str:
    """What an entry is, in words."""
    if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
        return "hidden file"
    if entry.is_dir():
        return "directory"
    if entry.exists() and not entry.is_file():
        return "special file"
    if entry.suffix.lower() in VIDEO_SUFFIXES:
        return _VIDEO
    # a broken link with the name of an image is an image that cannot be read
    return _IMAGE if is_image(entry) or is_picture(entry) else _OTHER


def natural(name: str) -> tuple[list[Any], str]:
    """2 before 10; names that are equal but for case or zeros in front in order of characters."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part.lower() for i, part in enumerate(parts)], name


def _counted(kind: str, entries: list[Path]) -> str:
    """Such as "5 hidden files (.a, .b, .c, ...)"."""
    names = [entry.name for entry in entries]
    shown = [*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])]
    many = _PLURALS.get(kind, f"{kind}s")
    return f"{len(names)} {kind if len(names) == 1 else many} ({', '.join(shown)})"
