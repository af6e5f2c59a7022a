"""The table of scored evidence, which `needle` and `eval` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_evidence"]


def print_evidence(console: Console, first: str, scores: Mapping[str, dict[str, Any]]) -> None:
    """Print what `evidence_score` gives for each name; nothing without scores.

    Args:
        first: the header above the names.
    """
    from timeviper_fast.cli.terminal import print_table

    header = (first, "masses of", "top span hits", "chance", "of three", "chance", "mass", "chance")
    lines = [
        (name, reading, *_cells(own))
        for name, readings in scores.items()
        for reading, own in readings.items()
    ]
    if lines:
        print_table(console, header, lines)


def _cells(own: dict[str, Any]) -> list[str]:
    from timeviper_fast.evaluation.score import Score

    by_chance = own["uniform"]
    counts = [str(Score(own[name]["right"], own[name]["n"])) for name in ("top1", "top3")]
    shares = [f"{100 * by_chance[name]:.1f} %" for name in ("top1", "top3", "mass")]
    return [counts[0], shares[0], counts[1], shares[1], f"{100 * own['mass']:.1f} %", shares[2]]
