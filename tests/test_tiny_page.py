"""The figures on the page of the trained tiny model are those of the recorded runs beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from timeviper_fast.evaluation.score import Score

DOCS = Path(__file__).parents[1] / "docs"
OTHERS = ("curves", "encoder", "held_out")
RECORDED = [path for path in sorted((DOCS / "tiny").glob("*.json")) if path.stem not in OTHERS]


def line(result):
    """A result as a row of a table."""
    right, kept = (Score(result[name]["right"], result[name]["n"]) for name in ("answers", "kept"))
    control = "" if result["control"] == "none" else f" {result['control']}"
    return (
        f"| {result['frames']:,} | {result['task']} |{control} | {result['keep']:g} "
        f"| {right} | {kept} |"
    )


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_recorded_score_stands_on_the_page(path):
    page = (DOCS / "tiny.md").read_text(encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    rows = [line(result) for result in results if not result["hops"]]
    assert rows
    assert not [row for row in rows if row not in page]


def test_the_readme_has_the_figures_of_the_longest_videos():
    readme = " ".join((DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    results = json.loads((DOCS / "tiny" / "needles.json").read_text(encoding="utf-8"))["results"]
    found = {
        result["task"]: result["answers"]
        for result in results
        if (result["frames"], result["keep"], result["hops"]) == (10_000, 0.1, 0)
    }
    assert {answers["n"] for answers in found.values()} == {1000}
    sign, colour, chain = (f"{100 * found[t]['share']:.1f}" for t in ("sign", "colour", "chain"))
    said = f"reads {sign} % of the signs, {colour} % of the colours and {chain} % of the chains"
    assert said in readme


def test_the_page_has_the_encoders_false_needles():
    page = " ".join((DOCS / "tiny.md").read_text(encoding="utf-8").split())
    measured = json.loads((DOCS / "tiny" / "encoder.json").read_text(encoding="utf-8"))
    counts = {
        (m["level"], m["step"]): (round(m["false"] * m["frames"]), m["frames"]) for m in measured
    }
    assert counts["study", 40_000] == (1, 300_000)
    assert counts["hard", 40_000] == (0, 50_000)
    assert counts["study", 17_469] == (20, 300_000)
    assert "takes 1 of 300,000 plain frames for a needle, and none of 50,000 on the harder" in page
    assert "at 17,469 steps, it was 20 of 300,000" in page


def test_the_page_has_what_training_has_not_seen():
    page = (DOCS / "tiny.md").read_text(encoding="utf-8")
    found = json.loads((DOCS / "tiny" / "held_out.json").read_text(encoding="utf-8"))["sets"]
    whole = [result for result in found if result["task"] == "all"]
    assert len(whole) == 5
    for result in whole:
        score = Score(result["right"], result["n"])
        assert f"| {score} | {result['difference']:+.1f} |" in page
        assert result["holds"]
