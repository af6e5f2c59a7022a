"""The sets by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from timeviper_fast.errors import ArgumentError, DataError, fail
from timeviper_fast.evaluation.sets import choices
from timeviper_fast.evaluation.sets.row import LeftOut, SetRow
from timeviper_fast.evaluation.sets.spans import charades_sta

__all__ = ["SETS", "missing_videos", "read_set"]

SETS: dict[str, Callable[[Path], Iterator[SetRow | LeftOut]]] = {
    "video-mme": choices.video_mme,
    "video-mme-v2": choices.video_mme_v2,
    "lvbench": choices.lv_bench,
    "mlvu": choices.mlvu,
    "longvideobench": choices.long_video_bench,
    "charades-sta": charades_sta,
    "mvbench": choices.mv_bench,
    "perception-test": choices.perception_test,
}


def read_set(
    name: str, folder: str | Path, on_left_out: Callable[[LeftOut], object] | None = None
) -> list[SetRow]:
    """All rows of a set, as it lies on disk.

    Args:
        name: one of SETS.
        folder: the set's folder, in the layout of its authors.
        on_left_out: called with each question that is not asked, because it needs a judge.

    Raises:
        ArgumentError: an unknown set, a folder without the set's files, or no row in them.
        DataError: a row breaks a rule; it names file and row.
    """
    if name not in SETS:
        fail("eval", "set", f"be one of {', '.join(SETS)}", name)
    folder = Path(folder)
    if not folder.is_dir():
        raise ArgumentError("eval", "folder", "be a directory", str(folder))
    rows: dict[str, SetRow] = {}
    for row in SETS[name](folder):
        if isinstance(row, LeftOut):
            if on_left_out is not None:
                on_left_out(row)
            continue
        if row.id in rows:
            fault = f"its id must be new, but {row.id} stands at {rows[row.id].where} too"
            raise DataError(row.where, fault)
        rows[row.id] = row
    if not rows:
        raise ArgumentError("eval", "folder", "hold a question with options", str(folder))
    return list(rows.values())


def missing_videos(rows: Sequence[SetRow]) -> list[Path]:
    """The videos that do not exist, each once, in the rows' order."""
    return [video for video in dict.fromkeys(row.video for row in rows) if not video.exists()]
