"""Playlists: text files that name the pieces of a video and hold none of them.

FFmpeg reads some of them as one video. It leaves out pieces that it does not find, without an
error, and takes whole pieces for damaged. So all playlists are refused.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import NamedTuple

from timeviper_fast.errors import VideoError

__all__ = ["refuse_playlist"]

_HEAD_BYTES = 4096
# FFmpeg looks as far for the beginning of a playlist, which may stand behind a comment
_TEXT_BYTES = 1 << 20
_JOIN = "join the pieces into one file first: ffmpeg -i PLAYLIST -c copy VIDEO.mp4"
_CONCAT = _JOIN.replace("-i", "-f concat -safe 0 -i")


class _Kind(NamedTuple):
    """A kind of playlist.

    Attributes:
        name: in words.
        start: how it begins, behind a byte order mark and blanks.
        suffixes: a text file with one of these is a playlist, however it begins.
        format: FFmpeg's name of the format.
        remedy: what to do instead.
    """

    name: str
    start: re.Pattern[bytes]
    suffixes: tuple[str, ...]
    format: str
    remedy: str


def _xml(*roots: str) -> str:
    """A pattern for XML whose root, with a prefix or without, is one of these."""
    return rf"(?=<)(?s:.*?)<(\w+:)?({'|'.join(roots)})[\s>]"


def _kind(name: str, start: str, suffixes: str, format: str, remedy: str) -> _Kind:
    pattern = re.compile(start.encode(), re.IGNORECASE)
    return _Kind(name, pattern, tuple(suffixes.split()), format, remedy)


_KINDS = (
    _kind("m3u8", "#EXTM3U", ".m3u8 .m3u", "hls", _JOIN),
    _kind("DASH", _xml("MPD"), ".mpd", "dash", _JOIN),
    _kind(
        "a list for FFmpeg's concat",
        r"(#[^\n]*\n\s*)*(ffconcat version|file\s+\S)",
        ".ffconcat",
        "concat",
        _CONCAT,
    ),
    _kind(
        "one of a player's or a studio's",
        r"\[playlist\]|"
        + _xml("asx", "CompositionPlaylist", "playlist", "smil", "SmoothStreamingMedia"),
        ".asx .pls .smil .xspf",
        "imf",
        "open the video's own file",
    ),
)


def refuse_playlist(path: Path, format: str = "") -> None:
    """Raise for a playlist, which is known by its first bytes, its suffix or its format.

    Args:
        path: a file of any kind. One with a playlist's suffix is none if it holds binary data.
        format: FFmpeg's name of the format, if it has opened the file.

    Raises:
        VideoError: it is a playlist.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if b"\0" not in head:
            head += file.read(_TEXT_BYTES - _HEAD_BYTES)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    suffix = "" if b"\0" in head else path.suffix.lower()
    for kind in _KINDS:
        if kind.start.match(text) or suffix in kind.suffixes or format == kind.format:
            fault = f"it is a playlist ({kind.name}), which names the pieces of a video"
            raise VideoError(f"{path}: {fault} and holds none", remedy=kind.remedy)
