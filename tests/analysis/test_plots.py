"""Pictures: their axes and colours, and what tells series apart without colours."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest

from timeviper_fast.analysis.plots import KINDS, LINES, draw

matplotlib = pytest.importorskip("matplotlib")


def luminance(colour) -> float:
    """Relative luminance of sRGB, as the Web Content Accessibility Guidelines define it."""
    parts = matplotlib.colors.to_rgb(colour)
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def lightness(colour) -> float:
    """L* of CIE Lab, 0 to 100."""
    y = luminance(colour)
    return 116 * y ** (1 / 3) - 16 if y > 216 / 24389 else y * 24389 / 27


def layers(**values) -> dict:
    told = {"title": "", "layers": [0, 2, 3], "kinds": ["mamba", "mamba", "attention"]}
    return {**told, "skipped": [1], **values}


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_lines_are_seen_on_white_and_told_apart_without_colours() -> None:
    import matplotlib.colors  # noqa: F401

    for styles in (LINES, (*KINDS.values(),)):
        for colour, _, _ in styles:
            assert 1.05 / (luminance(colour) + 0.05) >= 3
        for (one, *look), (other, *their) in combinations(styles, 2):
            assert abs(lightness(one) - lightness(other)) >= 6
            assert look != their
    (one, mark, line), (other, their, style) = KINDS.values()
    assert abs(lightness(one) - lightness(other)) >= 20
    assert mark != their
    assert line != style


def test_lightness_of_maps_rises_steadily() -> None:
    import matplotlib.colors

    colours = [lightness(matplotlib.colormaps["cividis"](i / 20)[:3]) for i in range(21)]
    assert all(low + 2 < high for low, high in pairwise(colours))


def test_shares_have_a_panel_for_each_pair_and_a_line_for_each_kind() -> None:
    shares = {
        "instruction": {"vision": [0.2, None, 0.6], "answer": [0.0, 0.0, 0.0]},
        "answer": {"vision": [0.1, 0.2, 0.3], "answer": [0.3, 0.2, 0.1]},
    }
    figure = draw(layers(figure="shares", shares=shares))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["instruction to vision", "answer to vision"]
    first, _, never, last = figure.axes
    attention, mamba, missing = first.lines
    assert labels(first) == ["attention", "Mamba-2", "no number"]
    assert (*attention.get_xdata(), *attention.get_ydata()) == (3, 0.6)
    assert [*mamba.get_xdata()] == [0, 2]
    # a share that is no number is a gap and a cross, and not 0
    assert mamba.get_ydata()[0] == 0.2
    assert math.isnan(mamba.get_ydata()[1])
    assert [*missing.get_xdata()] == [2]
    for line, style in zip((attention, mamba), KINDS.values()):
        assert (line.get_color(), line.get_marker(), line.get_linestyle()) == style
    assert [text.get_text() for text in never.texts] == ["0: these rows come before it"]
    assert last.get_xlabel() == "layer"
    assert first.get_ylabel() == "share"
    # the panels of a row have one scale, on which all their points are seen
    assert last.get_ylim()[0] == 0
    assert last.get_ylim()[1] >= 1.05 * 0.3
    assert first.get_ylim()[1] >= 1.05 * 0.6
    assert "not shown: layers 1" in figure.get_suptitle()


def test_a_long_question_leaves_room_for_the_picture() -> None:
    told = {"mass": [0.1, 0.2, 0.3], "least": [0.0] * 3, "most": [0.4] * 3, "uniform": [0.1] * 3}
    figure = draw({**layers(figure="sinks", **told), "title": "Which of these is it? " * 200})
    assert figure.get_suptitle().splitlines()[2].endswith("[...]")
    figure.canvas.draw()
    assert figure.axes[0].get_position().height > 0.5


def test_sinks_have_a_bar_over_the_heads_and_the_share_of_equal_weights() -> None:
    told = {"mass": [0.1, None, 0.3], "least": [0.0, None, 0.2], "most": [0.2, None, 0.4]}
    figure = draw(layers(figure="sinks", uniform=[0.1, None, 0.05], **told))
    [axes] = figure.axes
    assert labels(axes) == ["attention", "Mamba-2", "no number", "equal weights"]
    bars = [bar.get_segments()[0][:, 1].tolist() for bar in axes.collections]
    assert bars == [[0.0, 0.2], [0.2, 0.4]]


def test_a_map_shows_borders_names_seconds_zeros_and_what_is_no_number() -> None:
    figure = draw(
        {
            "figure": "map", "title": "a $ b $", "layer": 3, "kind": "attention", "head": 1,
            "groups": ["instruction", "vision", "answer"], "rows": [2, 3], "row_groups": [0, 2],
            "columns": {
                "first": [0, 1, 2, 3], "tokens": [1, 1, 1, 1], "groups": [0, 1, 0, 2],
                "seconds": [None, 12.5, None, None],
            },
            "weights": [[0.5, None, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]],
        }
    )  # fmt: skip
    axes = figure.axes[0]
    mesh, later = axes.collections
    shown = mesh.get_array()
    assert isinstance(mesh.norm, matplotlib.colors.LogNorm)
    assert mesh.get_cmap().name == "cividis"
    # hidden are a NaN, behind which is a hatch, and what the first row cannot see yet
    assert shown.mask.tolist() == [[False, True, False, True], [False] * 4]
    assert axes.patch.get_hatch()
    assert later.get_array().mask.tolist()[0] == [True] * 3 + [False]
    dark = mesh.to_rgba(shown)[0, 2]
    assert dark.tolist() == pytest.approx([*mesh.get_cmap()(0.0)])
    names = [text.get_text() for text in axes.texts]
    assert names == ["instruction", "vision", "instruction", "answer"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["instruction", "answer"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["12.5"]
    assert axes.get_xticks().tolist() == [0.375]
    assert figure.get_suptitle().startswith("a $ b $\nlayer 3 (attention), head 1")


def test_frames_of_a_long_video_share_columns_that_show_the_most_of_them() -> None:
    frames = 2500
    kept = [[2] * frames, [int(i == 1234) for i in range(frames)]]
    told = {"tokens": [2] * frames, "seconds": [10.0 * i for i in range(frames)], "kept": kept}
    figure = draw(
        {**layers(figure="kept", **told), "layers": [0, 3], "kinds": ["mamba", "attention"]}
    )
    axes = figure.axes[0]
    shown = axes.collections[0].get_array()
    assert shown.shape == (2, 834)
    assert shown[1].sum() == 1
    assert [text.get_text() for text in axes.get_yticklabels()] == [" 0", "attention 3"]
    assert "most of 3 neighbours" in figure.get_suptitle()
    assert axes.get_xticklabels()[-1].get_text() == "24990"


def test_curves_have_a_dashed_line_for_the_whole_model() -> None:
    lines = [
        {"label": "a", "layers": [0, 3], "values": [0.2, None], "whole": 0.9},
        {"label": "b", "layers": [0, 3], "values": [0.4, 0.8], "whole": 0.9},
    ]
    told = {"title": "", "kind": "blocking", "metric": "accuracy", "name": "mIoU", "lines": lines}
    [axes] = draw({"figure": "curves", **told}).axes
    first, whole, second, missing = axes.lines
    assert whole.get_linestyle() == "--"
    assert set(whole.get_ydata()) == {0.9}
    assert [*missing.get_xdata()] == [3]
    assert math.isnan(first.get_ydata()[1])
    assert (second.get_color(), second.get_marker(), second.get_linestyle()) == LINES[1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("first blocked layer", "mIoU")
    assert labels(axes) == ["a", "b", "no number"]


def test_twelve_curves_are_told_apart_and_what_is_no_number_is_named_once() -> None:
    lines = [
        {"label": f"{i}", "layers": [0, 3], "values": [i / 12, None], "whole": 0.9}
        for i in range(12)
    ]
    told = {"title": "", "kind": "blocking", "metric": "accuracy", "name": "", "lines": lines}
    [axes] = draw({"figure": "curves", **told}).axes
    drawn = {line.get_label(): line for line in axes.lines}
    looks = {
        (line.get_color(), line.get_marker(), line.get_linestyle(), line.get_markerfacecolor())
        for line in (drawn[f"{i}"] for i in range(12))
    }
    assert len(looks) == 12
    assert labels(axes) == [*(f"{i}" for i in range(12)), "no number"]


def test_a_short_question_behind_a_long_video_is_wide_enough_for_its_name() -> None:
    """Of 1,010 tokens 5 are in front of the video, 4 behind it, and 1 is the answer."""
    columns = {
        "first": [*range(5), *range(5, 1005, 10), *range(1005, 1010)],
        "tokens": [1] * 5 + [10] * 100 + [1] * 5,
        "groups": [0] * 5 + [1] * 100 + [0] * 4 + [2],
        "seconds": [None] * 110,
    }
    figure = draw(
        {
            "figure": "map", "title": "", "layer": 0, "kind": "mamba", "head": 0,
            "groups": ["instruction", "vision", "answer"], "columns": columns,
            "rows": [1008] * 99 + [1009], "row_groups": [0] * 99 + [2],
            "weights": [[1e-3] * 110] * 100,
        }
    )  # fmt: skip
    axes = figure.axes[0]
    edges = axes.collections[0].get_coordinates()[0, :, 0]
    widths = [edges[at] - edges[start] for start, at in ((0, 5), (5, 105), (105, 109), (109, 110))]
    # the one row of the answer is high enough for its name, too
    heights = axes.collections[0].get_coordinates()[:, 0, 1]
    assert heights[-1] - heights[-2] == pytest.approx(0.05 / 1.04)
    assert widths == pytest.approx([0.13 / 1.38, 0.99 / 1.38, 0.13 / 1.38, 0.13 / 1.38], rel=1e-2)
    assert (edges[0], edges[-1], heights[0], heights[-1]) == pytest.approx((0, 1, 0, 1))
    assert [text.get_rotation() for text in axes.texts] == [0] * 4
    assert axes.get_xlabel() == "tokens of this layer's input; short groups are stretched"
    assert [text.get_text() for text in axes.get_xticklabels()][-1] == "1009"
    # a tenth of equal weights is in the colours
    assert axes.collections[0].norm.vmin <= 1e-4
