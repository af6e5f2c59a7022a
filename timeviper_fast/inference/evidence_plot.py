"""Evidence as a picture: mass, its ratio to a neutral question, and kept tokens over time."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timeviper_fast.atomic import whole_file
from timeviper_fast.errors import expect_matplotlib
from timeviper_fast.inference.evidence import Evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_evidence"]

# Okabe and Ito's blue, vermilion and bluish green, which the colour-blind tell apart
_BLUE, _RED, _GREEN = "#0072B2", "#D55E00", "#009E73"


def plot_evidence(evidence: Evidence, path: str | Path, title: str = "") -> None:
    """Draw evidence into a PNG file, written whole or not at all.

    Panels: mass by frame, with the neutral question's as a dashed line; the ratio of both, if there
    is a control; tokens that the last layers saw. The picture says what it shows: where the model
    looked when it chose, and not where the answer comes from.

    Args:
        evidence: of one question.
        path: of the file; missing directories above it are made.
        title: above the panels, such as the question.

    Raises:
        ArgumentError: matplotlib is not installed.
        OSError: the file cannot be written; one of that name is as it was.
    """
    expect_matplotlib("plot_evidence", "plot")
    from matplotlib.figure import Figure

    panels = [_draw_mass, *([_draw_ratio] if evidence.control else []), _draw_kept]
    figure = Figure(figsize=(9, 0.8 + 2 * len(panels)), layout="constrained")
    for axes, draw in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels):
        draw(axes, evidence)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds")
    shown = "where the model looked when it chose what to keep"
    # names of videos and questions may hold dollar signs, which are no formulas
    figure.suptitle("\n".join(line for line in (title, shown) if line), parse_math=False)
    with whole_file(Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _steps(axes: Axes, evidence: Evidence, values: Sequence[float], **style: Any) -> None:
    """A level line for the seconds that each frame stands for."""
    *starts, end = evidence.edges
    # a single frame lasts no time: give it a second to be seen
    axes.stairs(values, [*starts, end if len(starts) > 1 else end + 1], **style)


def _draw_mass(axes: Axes, evidence: Evidence) -> None:
    _steps(axes, evidence, evidence.mass, fill=True, alpha=0.35, color=_BLUE)
    _steps(axes, evidence, evidence.mass, color=_BLUE, label="this question")
    if evidence.control is not None:
        _steps(axes, evidence, evidence.control, color=_RED, linestyle="--", label="neutral one")
        axes.legend(frameon=False, loc="upper right")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("attention")


def _draw_ratio(axes: Axes, evidence: Evidence) -> None:
    ratio = evidence.ratio or ()
    largest = max((value for value in ratio if isfinite(value)), default=1.0)
    _steps(axes, evidence, [min(value, largest) for value in ratio], color=_RED)
    axes.axhline(1, color="0.5", linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ratio to neutral")


def _draw_kept(axes: Axes, evidence: Evidence) -> None:
    _steps(axes, evidence, evidence.kept, fill=True, color=_GREEN)
    axes.set_ylim(bottom=0)
    clip = evidence.clip_frames
    axes.set_ylabel("tokens kept" if clip == 1 else f"tokens kept of {clip} frames")
