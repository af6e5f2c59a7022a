"""Scores and heat maps count every row once; a run's files; the error without matplotlib."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from timeviper_fast.evaluation.evidence_score import READINGS, Pointing, evidence_score
from timeviper_fast.evaluation.figures import (
    draw,
    grids,
    order,
    summary,
    write_results,
)
from timeviper_fast.evaluation.rows import Row
from timeviper_fast.evaluation.score import Score


def row(
    *,
    frames=64, task="sign", depth=0.5, right=True, hops=0, control="none", kept=1, video=0,
    needed=None, found=None,
):  # fmt: skip
    return Row(
        *(control, 0.1, frames, video, task, hops, depth, "What?", "K7", "K7"),
        right=right,
        needed=tuple(range(max(hops, 1))) if needed is None else needed,
        kept=kept,
        seconds=0.1,
        video_seconds=0.2,
        found=found,
    )


ROWS = [
    row(depth=0.0),
    row(depth=0.0, right=False, kept=0),
    row(depth=1.0),
    row(frames=1000, depth=1.0),
    row(task="chain", hops=2, depth=0.0, kept=2),
    row(task="chain", hops=3, depth=0.0, right=False, kept=2),
    row(control="blind", right=False, kept=None),
]


def test_the_summary_counts_every_row_once():
    found = {(e["control"], e["frames"], e["task"], e["hops"]): e for e in summary(ROWS)}
    whole = {key: e["answers"] for key, e in found.items() if key[3] == 0}
    assert sum(score["n"] for score in whole.values()) == len(ROWS)
    assert (whole["none", 64, "sign", 0]["right"], whole["none", 64, "sign", 0]["n"]) == (2, 3)
    chain = found["none", 64, "chain", 3]
    assert (chain["answers"]["right"], chain["kept"]["right"], chain["kept"]["n"]) == (0, 2, 3)
    assert found["none", 64, "chain", 0]["kept"]["n"] == 5
    assert found["blind", 64, "sign", 0]["kept"]["share"] is None


def test_scored_evidence_stands_in_the_summary_by_task_and_hops():
    hit = dict.fromkeys(READINGS, Pointing(True, True, 0.5, (0.1, 0.3, 0.2)))
    rows = [replace(ROWS[0], evidence=hit), replace(ROWS[4], evidence=hit), *ROWS[5:]]
    found = {(e["task"], e["hops"]): e.get("evidence") for e in summary(rows) if e["kept"]["n"]}
    assert found["chain", 0] == found["chain", 2] == found["sign", 0] == evidence_score([hit])
    assert found["chain", 3] is None


def test_heat_maps_hold_every_row_once():
    made = {grid.name: grid for grid in grids(ROWS)}
    assert set(made) == {
        *("accuracy-sign-none-0.1", "kept-sign-none-0.1", "accuracy-sign-blind-0.1"),
        *("accuracy-chain-none-0.1", "kept-chain-none-0.1"),
        *("accuracy-all-none-0.1", "kept-all-none-0.1"),
    }
    assert made["accuracy-all-none-0.1"].mean == Score(4, 6)
    signs = made["accuracy-sign-none-0.1"]
    assert signs.cells == {(64, 0.0): Score(1, 2), (64, 1.0): Score(1, 1), (1000, 1.0): Score(1, 1)}
    assert (signs.frames, signs.depths, signs.mean) == ([64, 1000], [0.0, 1.0], Score(3, 4))
    assert signs.of_length(64) == Score(2, 3)
    assert made["kept-chain-none-0.1"].mean == Score(4, 5)
    assert "blind" in made["accuracy-sign-blind-0.1"].title


def test_when_is_the_frame_with_the_largest_score():
    rows = [
        row(needed=(7,), found=7),
        row(needed=(9,), found=8, video=1),
        row(task="chain", hops=2, needed=(3, 5), found=5),
        row(task="no-sign", needed=(), found=2),
        row(control="blind", needed=(7,), kept=None),
    ]
    found = {(e["control"], e["task"], e["hops"]): e["when"] for e in summary(rows)}
    assert (found["none", "sign", 0]["right"], found["none", "sign", 0]["n"]) == (1, 2)
    assert (found["none", "chain", 2]["right"], found["none", "chain", 2]["n"]) == (1, 1)
    assert found["none", "no-sign", 0]["n"] == found["blind", "sign", 0]["n"] == 0


def test_order_counts_the_pairs_of_needles_of_a_video():
    """In video 0 the sign is seen first, as it is; in video 1 both are found in one frame."""
    rows = [
        *(row(needed=(2,), found=3), row(task="colour", needed=(9,), found=9)),
        *(row(needed=(8,), found=4, video=1), row(task="colour", needed=(1,), found=4, video=1)),
        row(needed=(5,), found=5, video=2),
    ]
    (line,) = order(rows)
    assert (line["control"], line["frames"], line["right"], line["n"]) == ("none", 64, 1, 2)
    assert len(line["interval"]) == 2


def test_the_numbers_lie_beside_the_figures(tmp_path):
    write_results(ROWS, tmp_path, "a foot", figures=False)
    assert not list(tmp_path.glob("*.png"))
    told = json.loads((tmp_path / "accuracy-sign-none-0.1.json").read_text())
    assert told["haystack"] == "a foot"
    assert [(c["frames"], c["depth"], c["right"], c["n"]) for c in told["cells"]] == [
        (64, 0.0, 1, 2),
        (64, 1.0, 1, 1),
        (1000, 1.0, 1, 1),
    ]
    assert json.loads((tmp_path / "summary.json").read_text())["results"]


def test_a_figure_has_its_axes_cells_and_foot(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn = []
    saved = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Figure, "savefig", lambda self, *a, **k: (drawn.append(self), saved(self, *a, **k))
        )
        draw(grids(ROWS)[0], tmp_path / "x.png", "a foot")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    (figure,) = drawn
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["64\n0.018 h", "1.0K\n0.28 h"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "100", "mean"]
    low, high = axes.get_ylim()
    assert low > high, "depth 0 is at the top"
    assert [text.get_text() for text in axes.texts] == [
        "50\n2",
        "100\n1",
        "67\n3",
        "",
        "100\n1",
        "100\n1",
    ]
    assert "mean 75.0 %" in axes.get_title()
    assert any("a foot" in text.get_text() for text in figure.texts)
    assert axes.collections[0].get_clim() == (0, 1)
