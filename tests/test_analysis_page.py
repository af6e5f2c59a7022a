"""The tables of docs/analysis.md are those of its file of numbers."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "analysis.md").read_text("utf8")
TOLD = json.loads((DOCS / "analysis" / "curves.json").read_text("utf8"))


def share(point) -> str:
    low, high = point["interval"]
    return f"{100 * point['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def row(name: str, points) -> str:
    return f"| {name} | " + " | ".join(map(share, points)) + " |"


def test_blocking_and_dropping_are_those_of_the_file():
    rows, grades = (
        ("V2I", "V2R", "both"),
        ("attention alone", *(f"and Mamba-2, {g}" for g in ("edge", "edge+conv", "absent"))),
    )
    for (rows_, grade), curve in zip(product(rows, grades), TOLD["blocking"], strict=True):
        assert row(f"{rows_}, {grade}", [curve["points"][i] for i in (0, 3, 4, 5)]) in PAGE
    assert f"Whole: {share(TOLD['blocking'][0]['whole'])}." in PAGE
    for curve, drop in product(TOLD["redundancy"], (0.5, 0.9)):
        found = {p["layer"]: share(p) for p in curve["points"] if p["drop"] == drop}
        cells = " | ".join(found.get(layer, "") for layer in (0, 3, 4, 5, 6))
        assert f"| {curve['select']}, {drop:.0%} | {cells} |" in PAGE
    assert f"Without it: {share(TOLD['redundancy'][0]['whole'])}." in PAGE


def test_first_layers_that_share_a_column_have_the_same_figures():
    for curve in TOLD["blocking"]:
        assert len({point["right"] for point in curve["points"][1:4]}) == 1
        assert curve["points"][6]["right"] == curve["whole"]["right"]
