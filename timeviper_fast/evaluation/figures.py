"""The result of a needle test: scores and heat maps over lengths and depths, also as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timeviper_fast.errors import expect_matplotlib
from timeviper_fast.evaluation.evidence_score import evidence_by
from timeviper_fast.evaluation.rows import Row, write_json
from timeviper_fast.evaluation.score import Score, tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Grid", "draw", "grids", "order", "summary", "write_results"]

_RED, _YELLOW, _GREEN = "#F0496E", "#EBB839", "#9ad5b3"
_ALL = "all"
_MEASURES = {"accuracy": "answers", "kept": "needed frames with a token kept"}


@dataclass(frozen=True)
class Grid:
    """One heat map.

    Attributes:
        name: stem of its file names.
        title: the title above the map.
        cells: a score for each (frames, depth).
    """

    name: str
    title: str
    cells: dict[tuple[int, float], Score]

    @property
    def frames(self) -> list[int]:
        """The lengths, ascending."""
        return sorted({frames for frames, _ in self.cells})

    @property
    def depths(self) -> list[float]:
        """The depths, ascending."""
        return sorted({depth for _, depth in self.cells})

    @property
    def mean(self) -> Score:
        """All cells together."""
        return sum(self.cells.values(), Score(0, 0))

    def of_length(self, frames: int) -> Score:
        """All depths of a length together."""
        return sum((s for (n, _), s in self.cells.items() if n == frames), Score(0, 0))

    def to_dict(self) -> dict[str, Any]:
        """The numbers of the figure, for JSON."""
        return {
            "title": self.title,
            "mean": self.mean.to_dict(),
            "lengths": [{"frames": n, **self.of_length(n).to_dict()} for n in self.frames],
            "cells": [
                {"frames": n, "depth": depth, **score.to_dict()}
                for (n, depth), score in sorted(self.cells.items())
            ],
        }


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Scores for each control, keep value, length and task; for chains also for each hop count.

    "answers" counts right answers, "kept" the needed frames that still have a token, and "when" the
    answers whose needed frame has the largest score of all frames. "evidence" is `evidence_score`,
    where the run scored it.
    """
    found = []
    whole = tally(rows, lambda r: (r.control, r.keep, r.frames, r.task, 0), lambda r: r.answered)
    parts = [row for row in rows if row.hops]
    hops = tally(parts, lambda r: (*_group(r), r.hops), lambda r: r.answered)
    kept = tally(rows, lambda r: (*_group(r), 0), lambda r: r.retained)
    kept |= tally(parts, lambda r: (*_group(r), r.hops), lambda r: r.retained)
    when = tally(rows, lambda r: (*_group(r), 0), lambda r: r.timed)
    when |= tally(parts, lambda r: (*_group(r), r.hops), lambda r: r.timed)
    looked = evidence_by(rows, _keys, lambda row: row.evidence)
    for key, score in sorted({**whole, **hops}.items()):
        names = dict(zip(("control", "keep", "frames", "task", "hops"), key))
        scores = {"answers": score, "kept": kept[key], "when": when[key]}
        found.append({**names, **{name: part.to_dict() for name, part in scores.items()}})
        found[-1] |= {"evidence": looked[key]} if key in looked else {}
    return found


def order(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Which of two needles comes first: the order of the frames found, for each length.

    Counts all pairs of questions about one video that need one frame each; two questions that
    find the same frame are wrong.
    """
    videos: dict[tuple[str, float, int, int], list[tuple[int, int]]] = {}
    for row in rows:
        if row.found is not None and len(row.needed) == 1:
            videos.setdefault(row.key[:4], []).append((row.needed[0], row.found))
    sums = tally(
        [(key[:3], pair) for key, own in videos.items() for pair in combinations(own, 2)],
        lambda item: item[0],
        lambda item: Score(int(_in_order(*item[1])), 1),
    )
    names = ("control", "keep", "frames")
    return [{**dict(zip(names, key)), **score.to_dict()} for key, score in sorted(sums.items())]


def _in_order(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return (one[0] - other[0]) * (one[1] - other[1]) > 0


def _group(row: Row) -> tuple[str, float, int, str]:
    return (row.control, row.keep, row.frames, row.task)


def _keys(row: Row) -> set[tuple[str, float, int, str, int]]:
    """The results in which a row counts: that of its task, and for a chain that of its hops."""
    return {(*_group(row), 0), (*_group(row), row.hops)}


def _maps(rows: Sequence[Row]) -> list[tuple[str, float, str]]:
    """Control, keep value and task of the heat maps; "all" is the mean of several tasks."""
    found = list(dict.fromkeys((r.control, r.keep, r.task) for r in rows))
    ways = [way[:2] for way in found]
    several = [way for way in dict.fromkeys(ways) if ways.count(way) > 1]
    return found + [(*way, _ALL) for way in several]


def grids(rows: Sequence[Row]) -> list[Grid]:
    """Two heat maps for each variant and task of a run: right answers, and kept frames.

    A variant with several tasks has two more for all of them together.
    """
    found = []
    for control, keep, task in _maps(rows):
        own = [r for r in rows if (r.control, r.keep) == (control, keep) and task in (r.task, _ALL)]
        way = f"keep {keep:g}" + ("" if control == "none" else f", {control}")
        for measure, words in _MEASURES.items():
            cells = tally(
                own,
                lambda r: (r.frames, r.depth),
                lambda r: r.answered if measure == "accuracy" else r.retained,  # noqa: B023
            )
            grid = Grid(f"{measure}-{task}-{control}-{keep:g}", f"{task}, {way}: {words}", cells)
            if grid.mean.n:
                found.append(grid)
    return found


def write_results(rows: Sequence[Row], out: Path, foot: str, *, figures: bool = True) -> None:
    """Write `summary.json`, and for each heat map a JSON file and, if wanted, a PNG."""
    whole = {"haystack": foot, "results": summary(rows), "order": order(rows)}
    write_json(out / "summary.json", whole)
    for grid in grids(rows):
        write_json(out / f"{grid.name}.json", {"haystack": foot, **grid.to_dict()})
        if figures:
            draw(grid, out / f"{grid.name}.png", foot)


def draw(grid: Grid, path: Path, foot: str) -> None:
    """Draw a heat map: lengths across, depths down, and below them a row of means."""
    expect_matplotlib("figures", "evaluation")
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    frames, depths = grid.frames, grid.depths
    columns = [[grid.cells.get((n, d), Score(0, 0)) for d in depths] for n in frames]
    columns = [[*cells, grid.of_length(n)] for n, cells in zip(frames, columns)]
    figure = Figure(figsize=(2.5 + 0.95 * len(frames), 1.8 + 0.42 * len(depths)), dpi=150)
    axes = figure.add_subplot()
    shares = [[column[i].share for column in columns] for i in range(len(depths) + 1)]
    colours = LinearSegmentedColormap.from_list("score", [_RED, _YELLOW, _GREEN])
    mesh = axes.pcolormesh(shares, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1)
    for x, column in enumerate(columns):
        for y, score in enumerate(column):
            text = f"{100 * score.share:.0f}\n{score.n}" if score.n else ""
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=6)
    _label(axes, frames, depths)
    axes.set_title(f"{grid.title}\nmean {grid.mean}", fontsize=8)
    figure.colorbar(mesh, ax=axes, label="Score")
    note = f"in each cell percent, and below how many; {foot}"
    figure.text(0.01, 0.005, note, fontsize=4.5, wrap=True)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path)


def _label(axes: Axes, frames: Sequence[int], depths: Sequence[float]) -> None:
    axes.invert_yaxis()
    axes.set_xticks([i + 0.5 for i in range(len(frames))], list(map(_length, frames)), fontsize=7)
    rows = [f"{100 * depth:.0f}" for depth in depths] + ["mean"]
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows, fontsize=7)
    axes.set_xlabel("Num. of Frames (hours at 1 per second)", fontsize=8)
    axes.set_ylabel("Depth Percent", fontsize=8)


def _length(frames: int) -> str:
    count = f"{frames / 1000:.1f}K" if frames >= 500 else str(frames)
    return f"{count}\n{frames / 3600:.2g} h"
