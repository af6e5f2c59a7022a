"""Check an annotation file and its media before a run: a list of faults, and never a crash."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

from timeviper_fast.dataset.kinds import kind_faults
from timeviper_fast.dataset.media import MediaIndex, Timeline
from timeviper_fast.dataset.rows import Fault, Row, Rows
from timeviper_fast.errors import ArgumentError
from timeviper_fast.video.times import frames_between

__all__ = ["check_rows"]


def check_rows(
    rows: Rows,
    kind: str = "conversation",
    index: MediaIndex | None = None,
    *,
    threads: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Fault]:
    """All faults of an annotation file, in the order of its rows.

    Each media file is opened once, however many rows name it, and at most the first frame of a
    video is decoded.

    Args:
        rows: the annotation file.
        kind: kind of the source, one of `kinds.KINDS`.
        index: looks up media files; with a folder, the next check is quick.
        threads: media files that are opened at the same time.
        progress: called with (media files done, all media files).
    """
    index = index or MediaIndex()
    faults = list(rows.faults)
    rows_of: dict[Path, array[int]] = {}
    # only rows with a part or a span are parsed again, to compare them with the video's length
    parts: dict[int, Row] = {}
    for i in range(len(rows)):
        row, reasons = rows.parse(i)
        if row is not None:
            reasons = kind_faults(row, kind)
            if row.media is not None:
                rows_of.setdefault(row.media, array("q")).append(i)
                if (row.start, row.end, row.span) != (None, None, None):
                    parts[i] = row
        faults += [Fault(rows.where(i), reason, i) for reason in reasons]
    for done, (path, found) in enumerate(index.scan(rows_of, threads), 1):
        for i in rows_of[path]:
            reason = found if isinstance(found, str) else _outside(parts.get(i), path, found)
            faults += [Fault(rows.where(i), reason, i)] if reason else []
        if progress is not None:
            progress(done, len(rows_of))
    # list the faults of the whole file first
    return sorted(faults, key=lambda fault: -1 if fault.row is None else fault.row)


def _outside(row: Row | None, path: Path, timeline: Timeline) -> str:
    """The reason why the part or span of a row lies outside its video; "" if it lies inside."""
    if row is None:
        return ""
    seconds, _, duration = timeline
    try:
        frames_between(seconds, duration, row.start, row.end)
    except ArgumentError as error:
        return f"{path}: {error}"
    end = float(seconds[0]) + duration
    if row.span and row.span[0] >= end:
        return f"{path}: span must begin within the video ({end:.2f} s), got {list(row.span)}"
    return ""
