"""Pictures of an analysis, drawn from the plain numbers that figures.py makes.

Series differ in colour, lightness, marker and line style. Line colours are from Okabe and Ito and
from Paul Tol, chosen to have a contrast of at least 3 with white; maps use cividis, whose lightness
rises steadily for normal and colour-blind sight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from textwrap import fill
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GROUP_COLOURS", "KINDS", "LINES", "draw"]

# of layer kinds: colour, marker, line style
KINDS = {"attention": ("#D55E00", "s", "--"), "mamba": ("#004488", "o", "-")}
_WORDS = {"attention": "attention", "mamba": "Mamba-2"}
# of curves: colour, marker, line style; dashes are for the whole model
LINES = (
    ("#004488", "o", "-"),
    ("#D55E00", "s", "-."),
    ("#000000", "^", ":"),
    ("#CC79A7", "D", "-"),
    ("#0072B2", "v", "-."),
)
# strips beside a map; each is named as well
GROUP_COLOURS = ("#000000", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442")
_MAP = "cividis"
# lightest and darkest colour of a map of weights are so far apart at most
_DECADES = 5
# as many columns of frames as a picture has room for
_FRAMES = 1000


def draw(figure: dict[str, Any]) -> Figure:
    """Draw the numbers of a figure (figures.py); it needs matplotlib."""
    kinds = {
        "map": _draw_map,
        "shares": _draw_shares,
        "sinks": _draw_sinks,
        "kept": _draw_kept,
        "curves": _draw_curves,
    }
    return kinds[figure["figure"]](figure)


def _figure(width: float, height: float, *titles: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    lines = [fill(title, int(12 * width)) for title in titles if title]
    # questions may hold dollar signs, which are no formulas
    figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)
    return figure


def _draw_map(told: dict[str, Any]) -> Figure:
    from matplotlib.colors import LogNorm

    rows, columns = told["rows"], told["columns"]
    edges = [*columns["first"], columns["first"][-1] + columns["tokens"][-1]]
    seen = [x for row in told["weights"] for x in row if x]
    most = max(seen, default=1.0)
    least = max(min([*seen, most / 10]), most / 10**_DECADES)
    # a logarithmic scale would hide zeros
    values = [
        [math.nan if x is None else max(x, least / 10) for x in row] for row in told["weights"]
    ]
    height = min(max(1.7 + 0.12 * len(rows), 2.6), 9)
    words = f"layer {told['layer']} ({_WORDS[told['kind']]}), head {told['head']}: |weight|"
    figure = _figure(9, height, told["title"], f"{words} as a share of its row, in a token")
    axes = figure.add_subplot()
    norm = LogNorm(least, most)
    heights = range(len(rows) + 1)
    # what a row cannot see yet is white, a NaN is hatched, and 0 has the darkest colour
    axes.patch.set(facecolor="0.85", hatch="xxx", edgecolor="0.6")
    masked = _masked(values, [[at > row for at in columns["first"]] for row in rows])
    mesh = axes.pcolormesh(edges, heights, masked, cmap=_MAP, norm=norm, rasterized=True)
    later = _masked(
        [[0.0] * len(edges[1:]) for _ in rows], [[x <= row for x in edges[:-1]] for row in rows]
    )
    axes.pcolormesh(edges, heights, later, cmap="gray_r", vmin=0, vmax=1, rasterized=True)
    axes.invert_yaxis()
    _mark_groups(axes, told, edges)
    _seconds_axis(axes, columns)
    bar = figure.colorbar(mesh, ax=axes, extend="min", pad=0.01)
    bar.set_label("share", fontsize=8)
    return figure


def _masked(values: list[list[float]], hidden: list[list[bool]]) -> Any:
    """Values for `pcolormesh` that shows neither hidden ones nor NaN."""
    import numpy as np

    shown = np.asarray(values, dtype=float)
    return np.ma.masked_where(np.asarray(hidden) | np.isnan(shown), shown)


def _mark_groups(axes: Axes, told: dict[str, Any], edges: Sequence[int]) -> None:
    """Name the groups of columns above the map and those of rows beside it; lines part them."""
    names, span = told["groups"], edges[-1] - edges[0]
    start = 0
    for number, run in groupby(told["columns"]["groups"]):
        stop = start + len(list(run))
        left, right = edges[start], edges[stop]
        axes.axvline(left, color="white", linewidth=1.5)
        axes.axvline(left, color="black", linewidth=0.7)
        style: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        bar = {"color": GROUP_COLOURS[number % len(GROUP_COLOURS)], "solid_capstyle": "butt"}
        axes.plot([left, right], [1.015, 1.015], linewidth=4, **bar | style)
        narrow = (right - left) / span < 0.012 * len(names[number])
        style |= {"rotation": 35, "ha": "left"} if narrow else {"ha": "center"}
        axes.text((left + right) / 2, 1.03, names[number], va="bottom", fontsize=7, **style)
        start = stop
    ticks, labels, start = [], [], 0
    for number, run in groupby(told["row_groups"]):
        stop = start + len(list(run))
        axes.axhline(start, color="white", linewidth=1.5)
        axes.axhline(start, color="black", linewidth=0.7)
        ticks.append((start + stop) / 2)
        labels.append(names[number])
        start = stop
    axes.set_yticks(ticks, labels, fontsize=7, rotation=90, va="center")
    axes.set_ylabel("rows", fontsize=8)


def _seconds_axis(axes: Axes, columns: dict[str, Any]) -> None:
    """Seconds below the columns that have them; else the tokens' numbers."""
    ticks = _ticks(columns["seconds"])
    axes.set_xlabel("tokens of this layer's input", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    if ticks:
        places = [columns["first"][i] + columns["tokens"][i] / 2 for i in ticks]
        axes.set_xticks(places, [f"{columns['seconds'][i]:.4g}" for i in ticks])
        axes.set_xlabel("tokens of this layer's input, at the second of the video", fontsize=8)


def _ticks(seconds: Sequence[float | None]) -> list[int]:
    """Up to nine of the places that have a second."""
    shown = [i for i, second in enumerate(seconds) if second is not None]
    return [shown[round(i * (len(shown) - 1) / 8)] for i in range(9)] if shown[8:] else shown


def _draw_shares(told: dict[str, Any]) -> Figure:
    shares = told["shares"]
    targets = list(dict.fromkeys(target for own in shares.values() for target in own))
    size = 1 + 4 * max(len(shares), 1.5), 1.2 + 1.6 * len(targets)
    words = "how much rows of a group look at each group, by layer"
    figure = _figure(*size, told["title"], words, _without(told))
    options: dict[str, Any] = {"sharex": True, "sharey": "row", "squeeze": False}
    panels = figure.subplots(len(targets), len(shares), **options)
    for column, (source, own) in enumerate(shares.items()):
        for row, target in enumerate(targets):
            axes = panels[row, column]
            _draw_share(axes, told, own[target])
            axes.set_title(f"{source} to {target}", fontsize=8, parse_math=False)
        axes.set_xlabel("layer", fontsize=8)
    for axes in panels[:, 0]:
        # behind the other panels of the row, whose numbers count for the common axis
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share", fontsize=8)
    panels[0, 0].legend(fontsize=7, frameon=False)
    return figure


def _draw_share(axes: Axes, told: dict[str, Any], values: Sequence[float | None]) -> None:
    """One panel. Zeros alone are of a group that stands behind the rows, and are said in words."""
    _plain(axes)
    if any(values) or None in values:
        _by_kind(axes, told, values)
        return
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
    axes.text(0.5, 0.5, "0: these rows come before it", fontsize=7, color="0.35", **place)


def _by_kind(axes: Axes, told: dict[str, Any], values: Sequence[float | None]) -> None:
    """A line for each kind of layer; None is a gap, marked by a cross on the axis."""
    for kind, (colour, marker, line) in KINDS.items():
        at = [i for i, own in enumerate(told["kinds"]) if own == kind]
        if not at:
            continue
        layers = [told["layers"][i] for i in at]
        heights = [math.nan if (value := values[i]) is None else value for i in at]
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "linestyle": line,
            "markersize": 4,
        }
        axes.plot(layers, heights, linewidth=1, label=_WORDS[kind], **style)
    _mark_missing(axes, [x for x, value in zip(told["layers"], values) if value is None])
    _plain(axes)


def _mark_missing(axes: Axes, layers: Sequence[float]) -> None:
    """Grey crosses on the axis where there is no number."""
    if layers:
        style: dict[str, Any] = {"color": "0.45", "marker": "x", "linestyle": "", "clip_on": False}
        heights = [0.0] * len(layers)
        axes.plot(layers, heights, transform=axes.get_xaxis_transform(), label="no number", **style)


def _plain(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _without(told: dict[str, Any]) -> str:
    """Which layers are not shown."""
    skipped = told["skipped"]
    return f"not shown: layers {', '.join(map(str, skipped))}" if skipped else ""


def _draw_sinks(told: dict[str, Any]) -> Figure:
    words = "mass on the first tokens: the mean over the heads, and a bar over all heads"
    figure = _figure(7, 3.4, told["title"], words, _without(told))
    axes = figure.add_subplot()
    _by_kind(axes, told, told["mass"])
    columns = zip(told["layers"], told["kinds"], told["least"], told["most"])
    for layer, kind, low, high in columns:
        if low is not None:
            axes.vlines(layer, low, high, KINDS[kind][0], linewidth=1, alpha=0.6)
    uniform = [math.nan if x is None else x for x in told["uniform"]]
    style: dict[str, Any] = {"color": "0.35", "marker": "_", "linestyle": "", "markersize": 12}
    axes.plot(told["layers"], uniform, label="equal weights", **style)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer", fontsize=8)
    axes.set_ylabel("mass", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    return figure


def _draw_kept(told: dict[str, Any]) -> Figure:
    import numpy as np

    step = max(1, -(-len(told["tokens"]) // _FRAMES))
    starts = np.arange(0, len(told["tokens"]), step)
    kept = np.maximum.reduceat(np.asarray(told["kept"]), starts, axis=1)
    height = min(max(1.6 + 0.22 * len(kept), 2.6), 9)
    words = "tokens of each frame that enter each layer"
    words += f", the most of {step} neighbours" * (step > 1)
    figure = _figure(9, height, told["title"], words, _without(told))
    axes = figure.add_subplot()
    most = max(max(told["tokens"], default=1), 1)
    colours: dict[str, Any] = {"cmap": _MAP, "vmin": 0, "vmax": most, "rasterized": True}
    mesh = axes.pcolormesh(np.arange(kept.shape[1] + 1), np.arange(len(kept) + 1), kept, **colours)
    for y in range(1, len(kept)):
        axes.axhline(y, color="white", linewidth=0.8)
    rows = range(0, len(kept), max(1, -(-len(kept) // 30)))
    marks = {"attention": "attention", "mamba": ""}
    labels = [f"{marks[told['kinds'][i]]} {told['layers'][i]}" for i in rows]
    axes.set_yticks([i + 0.5 for i in rows], labels, fontsize=6)
    axes.invert_yaxis()
    axes.set_ylabel("layer", fontsize=8)
    _frames_axis(axes, [told["seconds"][at] for at in starts])
    bar = figure.colorbar(mesh, ax=axes, pad=0.01)
    bar.set_label("tokens", fontsize=8)
    return figure


def _frames_axis(axes: Axes, seconds: Sequence[float | None]) -> None:
    ticks = _ticks(seconds)
    axes.set_xticks([i + 0.5 for i in ticks], [f"{seconds[i]:.4g}" for i in ticks], fontsize=7)
    axes.set_xlabel("frames, at the second of the video", fontsize=8)


def _draw_curves(told: dict[str, Any]) -> Figure:
    blocks = told["kind"] == "blocking"
    words = "vision is blocked from a layer on" if blocks else "tokens are dropped before a layer"
    figure = _figure(7, 4, told["title"], f"{words} (dashed: the whole model)")
    axes, wholes = figure.add_subplot(), [line["whole"] for line in told["lines"]]
    for i, line in enumerate(told["lines"]):
        colour, marker, style = LINES[i % len(LINES)]
        values = [math.nan if x is None else x for x in line["values"]]
        look: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "linestyle": style,
            "markersize": 4,
        }
        axes.plot(line["layers"], values, linewidth=1.2, label=line["label"], **look)
        whole = line["whole"]
        if whole is not None and wholes.index(whole) == i:
            alone = len(set(wholes)) == 1
            axes.axhline(whole, color="0.35" if alone else colour, linestyle="--", linewidth=1)
        pairs = zip(line["layers"], line["values"])
        _mark_missing(axes, [layer for layer, value in pairs if value is None])
    _plain(axes)
    if told["metric"] == "accuracy":
        axes.set_ylim(0, 1.03)
    axes.set_xlabel("first blocked layer" if blocks else "layer of the drop", fontsize=8)
    axes.set_ylabel(told["name"], fontsize=8, parse_math=False)
    axes.legend(fontsize=7, frameon=False)
    return figure
