"""Numbers of figures by hand, their files, and pictures that are drawn from them alone."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from tests.analysis.test_view import GROUPS, view_of
from timeviper_fast.analysis.ask import Seen
from timeviper_fast.analysis.curves import Curve, Measure
from timeviper_fast.analysis.figures import (
    curve_figure,
    heads_of_most_vision,
    is_figure,
    kept_figure,
    map_figure,
    redraw,
    share_figure,
    sink_figure,
    write_figure,
    write_figures,
)
from timeviper_fast.analysis.groups import Groups
from timeviper_fast.analysis.view import View
from timeviper_fast.layout import Segment, VisualSpan


def seen_of(*layers) -> Seen:
    """Two frames of two vision tokens, at 0 and 10 seconds."""
    seconds = torch.tensor([0.0, 0.0, 10.0, 10.0]).double()
    view = View(GROUPS.names, layers, {3: "no columns"}, True, 8, 4)
    return Seen(view, seconds, (2, 2))


SEEN = seen_of(view_of(2, GROUPS), view_of(5, GROUPS))
WHOLE = Groups.of(Segment(6, VisualSpan(1, 4)))


def curves() -> list[Curve]:
    whole = Measure(9, 10, -1.0, -0.5)
    told = {"kind": "blocking", "rows": ["instruction"], "grade": None, "transfer": True}
    points = (Measure(2, 10, -4.0, -2.0, layer=0), Measure(0, 0, math.nan, math.nan, layer=3))
    dropped = {"kind": "redundancy", "select": "uniform", "score": "normed", "transfer": False}
    lost = tuple(Measure(4, 10, -3.0, -1.5, at, drop) for at in (0, 3) for drop in (0.5, 0.9))
    return [Curve(told, whole, points), Curve(dropped, whole, lost)]


def test_a_map_has_shares_of_rows_and_columns_that_stay_in_their_groups() -> None:
    """The row has the weights 2, 2, 4 and 0, of which vision is the second and third token."""
    told = map_figure(SEEN, 2, 0)
    assert told["weights"] == [[0.25, 0.25, 0.5, 0.0]]
    assert told["rows"] == [3]
    assert [told["groups"][number] for number in told["row_groups"]] == ["instruction"]
    assert told["columns"] == {
        "first": [0, 1, 2, 3], "tokens": [1, 1, 1, 1], "groups": [0, 1, 1, 0],
        "seconds": [None, 0.0, 0.0, None],
    }  # fmt: skip
    narrow = map_figure(SEEN, 2, 0, columns=2)
    assert narrow["columns"]["tokens"] == [1, 2, 1]
    assert narrow["weights"] == [[0.25, 0.375, 0.0]]
    assert narrow["columns"]["groups"] == [0, 1, 0]


def test_a_question_behind_a_long_video_keeps_a_column_for_each_token() -> None:
    """Of 3,010 tokens in at most about 100 columns, only the 3,000 of vision share columns."""
    groups = Groups.of(Segment(3010, VisualSpan(6, 3000)))
    view = replace(view_of(2, GROUPS), groups=groups, chosen=torch.tensor([3009]))
    view = replace(view, maps={0: torch.ones(1, 3010)})
    seen = Seen(seen_of(view).view, torch.zeros(3000).double(), (3000,))
    columns = map_figure(seen, 2, 0, columns=100)["columns"]
    assert columns["tokens"] == [1] * 6 + [31] * 96 + [24] + [1] * 4
    assert sum(columns["tokens"]) == 3010
    assert columns["groups"] == [0] * 6 + [1] * 97 + [0] * 4


def test_a_weight_that_is_no_number_stays_one() -> None:
    view = view_of(2, GROUPS)
    view.maps[0][0, 1] = math.nan
    assert map_figure(seen_of(view), 2, 0)["weights"] == [[None, None, None, None]]


def test_shares_and_sinks_by_layer() -> None:
    told = share_figure(SEEN)
    # half of the heads' 0.75 and 0.5; no row of an answer and no token of one
    assert told["shares"] == {"instruction": {"instruction": [0.375] * 2, "vision": [0.625] * 2}}
    assert (told["layers"], told["kinds"], told["skipped"]) == ([2, 5], ["mamba"] * 2, [3])
    sinks = sink_figure(SEEN)
    assert (sinks["mass"], sinks["uniform"]) == ([1.0, 1.0], [0.25, 0.25])


def test_kept_tokens_of_frames() -> None:
    later = WHOLE.keep(torch.tensor([0, 2, 3]))
    told = kept_figure(
        seen_of(*(replace(view_of(2, GROUPS), groups=own) for own in (WHOLE, later)))
    )
    assert told["kept"] == [[2, 2], [1, 2]]
    assert (told["tokens"], told["seconds"]) == ([2, 2], [0.0, 10.0])


def test_the_head_that_looks_most_at_vision() -> None:
    """Head 0 has 6 of 8 on vision, head 1 has 2 of 4; the first of equal layers is taken."""
    assert heads_of_most_vision(SEEN.view) == {2: (0,)}


def test_a_line_of_a_curve_for_each_blocking_and_each_drop() -> None:
    blocks, drops = (curve_figure([curve]) for curve in curves())
    [line] = blocks["lines"]
    assert (line["label"], line["layers"]) == ("V2I, attention alone", [0, 3])
    # no example is no accuracy of 0
    assert (line["values"], line["whole"]) == ([0.2, None], 0.9)
    assert [line["label"] for line in drops["lines"]] == [
        "uniform, 50 % dropped", "uniform, 90 % dropped",
    ]  # fmt: skip
    told = curve_figure(curves()[1:], "log_likelihood")
    assert (told["name"], told["lines"][0]["values"]) == ("log likelihood", [-3.0, -3.0])


def test_pictures_lie_beside_their_numbers_and_are_drawn_from_them_alone(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    files = write_figures(SEEN, tmp_path / "new", title="What costs $5 and $6?")
    names = {path.name for path in files}
    stems = ("shares", "sinks", "kept", "map-2-0", "map-5-0")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("json", "png")}
    files += write_figure(curve_figure(curves()[:1]), tmp_path / "new" / "blocking.v2i")
    before = {path: path.read_bytes() for path in files}
    assert {*(tmp_path / "new").iterdir()} == {*files}
    for path in files:
        if path.suffix == ".json":
            assert is_figure(path)
            picture = redraw(path)
            assert picture.read_bytes() == before[picture]
            # the numbers are not touched, and written again they are the same bytes
            write_figure(json.loads(path.read_text()), tmp_path / path.stem, picture=False)
            assert (tmp_path / path.name).read_bytes() == path.read_bytes() == before[path]


def test_without_matplotlib_there_are_numbers_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = share_figure(SEEN)
    assert write_figure(told, tmp_path / "a", picture=False) == [tmp_path / "a.json"]
    for draw in (lambda: write_figure(told, tmp_path / "b"), lambda: redraw(tmp_path / "a.json")):
        with pytest.raises(ValueError, match=r"matplotlib must be installed, got none; .*\[plot\]"):
            draw()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_refusals(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"name a head with a map \(2:0, 5:0\), got 2:1"):
        map_figure(SEEN, 2, 1)
    with pytest.raises(ValueError, match="columns must be an integer of 1 or more, got 0"):
        map_figure(SEEN, 2, 0, columns=0)
    with pytest.raises(ValueError, match="curves must hold a curve or more"):
        curve_figure([])
    with pytest.raises(ValueError, match=r"metric must be one of accuracy, .* got 'right'"):
        curve_figure(curves(), "right")
    nothing = {"figure": "sinks", "mass": [None], "least": [0.0]}
    with pytest.raises(ValueError, match=r"write_figure: figure must hold a finite number \(sinks"):
        write_figure(nothing, tmp_path / "a")
    empty = curve_figure([Curve(curves()[0].settings, curves()[0].whole, curves()[0].points[1:])])
    with pytest.raises(ValueError, match=r"hold a finite number \(curves"):
        write_figure(empty, tmp_path / "a")
    with pytest.raises(ValueError, match=r"figure must be a figure .* got dict"):
        write_figure({"figure": "pie"}, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    for text, rule in (("{", "be a JSON file"), ('{"answer": ""}', "be a figure")):
        (tmp_path / "a.json").write_text(text)
        assert not is_figure(tmp_path / "a.json")
        with pytest.raises(ValueError, match=f"redraw: path must {rule}.*a.json"):
            redraw(tmp_path / "a.json")
