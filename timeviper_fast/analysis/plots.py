"""Pictures of an analysis, drawn from the plain numbers that figures.py makes.

Series differ in colour, lightness, marker and line style. Line colours are from Okabe and Ito and
from Paul Tol, chosen to have a contrast of at least 3 with white; maps use cividis, whose lightness
rises steadily for normal and colour-blind sight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, groupby
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
# markers of the lines behind these; seven are no multiple of the colours
_HOLLOW = ("P", "X", "d", "<", ">", "h", "*")
# strips beside a map; each is named as well
GROUP_COLOURS = ("#000000", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442")
_MAP = "cividis"
# lightest and darkest colour of a map of weights are so far apart at most
_DECADES = 5
# of a map's width and height, what a group has at least, so that its name fits beside it
_NARROWEST = 0.13
_LOWEST = 0.05
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
    # a question with options may be long
    lines = [fill(title, int(12 * width), max_lines=3) for title in titles if title]
    # questions may hold dollar signs, which are no formulas
    figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)
    return figure


def _draw_map(told: dict[str, Any]) -> Figure:
    from matplotlib.colors import LogNorm

    rows, columns = told["rows"], told["columns"]
    least, most = _scale(told["weights"], sum(columns["tokens"]))
    # a logarithmic scale would hide zeros
    values = [
        [math.nan if x is None else max(x, least / 10) for x in row] for row in told["weights"]
    ]
    height = min(max(1.7 + 0.12 * len(rows), 2.6), 9)
    words = f"layer {told['layer']} ({_WORDS[told['kind']]}), head {told['head']}: |weight|"
    figure = _figure(9, height, told["title"], f"{words} as a share of its row, per token")
    axes, norm = figure.add_subplot(), LogNorm(least, most)
    edges, wider = _edges(columns["groups"], columns["tokens"], _NARROWEST)
    heights, higher = _edges(told["row_groups"], [1] * len(rows), _LOWEST)
    # what a row cannot see yet is white, a NaN is hatched, and 0 has the darkest colour
    axes.patch.set(facecolor="0.85", hatch="xxx", edgecolor="0.6")
    unseen = [[first > row for first in columns["first"]] for row in rows]
    masked = _masked(values, unseen)
    mesh = axes.pcolormesh(edges, heights, masked, cmap=_MAP, norm=norm, rasterized=True)
    blank = [[0.0] * len(columns["first"]) for _ in rows]
    later = _masked(blank, [[not hidden for hidden in row] for row in unseen])
    axes.pcolormesh(edges, heights, later, cmap="gray_r", vmin=0, vmax=1, rasterized=True)
    axes.invert_yaxis()
    _mark_groups(axes, told, edges)
    _mark_rows(axes, told, heights)
    _columns_axis(axes, columns, edges, stretched=wider or higher)
    bar = figure.colorbar(mesh, ax=axes, extend="min", pad=0.01)
    bar.set_label("share", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _scale(weights: list[list[float | None]], tokens: int) -> tuple[float, float]:
    """Least and most of the colours: all weights above 0, as far as five decades down, and farther
    where equal weights are smaller."""
    seen = [x for row in weights for x in row if x]
    most = max(seen, default=1.0)
    floor = min(most / 10**_DECADES, 0.1 / tokens)
    return max(min([*seen, most / 10]), floor), most


def _edges(
    groups: Sequence[int], sizes: Sequence[int], narrowest: float
) -> tuple[list[float], bool]:
    """Borders of columns or rows, from 0 to 1, and whether a run of a group is wider than its
    sizes: a question behind a long video would be a line too thin to see and to name."""
    runs = [len([*run]) for _, run in groupby(groups)]
    least, start, widths = min(narrowest, 0.55 / len(runs)), 0, []
    stretched = False
    for n in runs:
        own = sizes[start : start + n]
        share = sum(own) / sum(sizes)
        stretched |= share < least
        widths += [max(share, least) * width / sum(own) for width in own]
        start += n
    return [0.0, *(edge / sum(widths) for edge in accumulate(widths))], stretched


def _masked(values: list[list[float]], hidden: list[list[bool]]) -> Any:
    """Values for `pcolormesh` that shows neither hidden ones nor NaN."""
    import numpy as np

    shown = np.asarray(values, dtype=float)
    return np.ma.masked_where(np.asarray(hidden) | np.isnan(shown), shown)


def _mark_groups(axes: Axes, told: dict[str, Any], edges: Sequence[float]) -> None:
    """Name the groups of columns above the map; lines part them."""
    names, start = told["groups"], 0
    style: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    for number, run in groupby(told["columns"]["groups"]):
        stop = start + len(list(run))
        left, right = edges[start], edges[stop]
        axes.axvline(left, color="white", linewidth=1.5)
        axes.axvline(left, color="black", linewidth=0.7)
        bar = {"color": GROUP_COLOURS[number % len(GROUP_COLOURS)], "solid_capstyle": "butt"}
        axes.plot([left, right], [1.015, 1.015], linewidth=4, **bar | style)
        narrow = right - left < 0.0085 * len(names[number])
        turn = {"rotation": 35, "ha": "left"} if narrow else {"ha": "center"}
        middle = (left + right) / 2
        axes.text(middle, 1.03, names[number], va="bottom", fontsize=7, **turn | style)
        start = stop


def _mark_rows(axes: Axes, told: dict[str, Any], edges: Sequence[float]) -> None:
    """Name the groups of rows beside the map; lines part them."""
    ticks, labels, start = [], [], 0
    for number, run in groupby(told["row_groups"]):
        stop = start + len(list(run))
        axes.axhline(edges[start], color="white", linewidth=1.5)
        axes.axhline(edges[start], color="black", linewidth=0.7)
        ticks.append((edges[start] + edges[stop]) / 2)
        labels.append(told["groups"][number])
        start = stop
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_ylabel("rows", fontsize=8)


def _columns_axis(
    axes: Axes, columns: dict[str, Any], edges: Sequence[float], *, stretched: bool
) -> None:
    """Seconds below the columns that have them; without any, the tokens' numbers."""
    shown, words = columns["seconds"], ", at the second of the video"
    if not any(second is not None for second in shown):
        shown, words = columns["first"], ""
    at = [edges[i] for i, second in enumerate(shown) if second is not None]
    # a label and a gap take a twentieth
    ticks = _ticks(shown, max(2, min(9, int(20 * (at[-1] - at[0])))))
    places = [(edges[i] + edges[i + 1]) / 2 for i in ticks]
    axes.set_xticks(places, [_tenths(shown[i]) for i in ticks], fontsize=7)
    words += "; short groups are stretched" * stretched
    axes.set_xlabel(f"tokens of this layer's input{words}", fontsize=8)


def _ticks(seconds: Sequence[float | None], most: int = 9) -> list[int]:
    """Up to `most` of the places that have a second, 2 or more."""
    shown = [i for i, second in enumerate(seconds) if second is not None]
    if len(shown) <= most:
        return shown
    return [shown[round(i * (len(shown) - 1) / (most - 1))] for i in range(most)]


def _tenths(value: Any) -> str:
    """A number to one place behind the point, as long as it is: hours have five digits."""
    return f"{value:.1f}".removesuffix(".0")


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
        _from_zero(axes)
        axes.set_ylabel("share", fontsize=8)
    shown = [axes.get_legend_handles_labels() for axes in panels.flat]
    handles = {label: handle for own in shown for handle, label in zip(*own)}
    panels[0, 0].legend(handles.values(), handles, fontsize=7, frameon=False)
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


def _from_zero(axes: Axes) -> None:
    """Begin at 0, and leave room for the whole marker of the highest point."""
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def _without(told: dict[str, Any]) -> str:
    """Which layers are not shown."""
    skipped = told["skipped"]
    return f"not shown: layers {', '.join(map(str, skipped))}" if skipped else ""


def _draw_sinks(told: dict[str, Any]) -> Figure:
    words = "mass on the first tokens: mean over the heads, and a bar from least to most"
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
    _from_zero(axes)
    axes.set_xlabel("layer", fontsize=8)
    axes.set_ylabel("mass", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    return figure


def _draw_kept(told: dict[str, Any]) -> Figure:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

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
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _frames_axis(axes: Axes, seconds: Sequence[float | None]) -> None:
    ticks = _ticks(seconds)
    axes.set_xticks([i + 0.5 for i in ticks], [_tenths(seconds[i]) for i in ticks], fontsize=7)
    axes.set_xlabel("frames, at the second of the video", fontsize=8)


def _draw_curves(told: dict[str, Any]) -> Figure:
    blocks = told["kind"] == "blocking"
    words = "vision is blocked from a layer on" if blocks else "tokens are dropped before a layer"
    figure = _figure(7, 4, told["title"], f"{words} (dashed: the whole model)")
    axes, wholes = figure.add_subplot(), [line["whole"] for line in told["lines"]]
    missing = set()
    for i, line in enumerate(told["lines"]):
        look = _look(i)
        values = [math.nan if x is None else x for x in line["values"]]
        axes.plot(line["layers"], values, linewidth=1.2, label=line["label"], **look)
        whole = line["whole"]
        if whole is not None and wholes.index(whole) == i:
            colour = "0.35" if len(set(wholes)) == 1 else look["color"]
            axes.axhline(whole, color=colour, linestyle="--", linewidth=1)
        missing |= {at for at, value in zip(line["layers"], line["values"]) if value is None}
    _mark_missing(axes, sorted(missing))
    _plain(axes)
    if told["metric"] == "accuracy":
        axes.set_ylim(0, 1.03)
    axes.set_xlabel("first blocked layer" if blocks else "layer of the drop", fontsize=8)
    axes.set_ylabel(told["name"], fontsize=8, parse_math=False)
    axes.legend(fontsize=7, frameon=False)
    return figure


def _look(i: int) -> dict[str, Any]:
    """How the line of a number looks; after all colours come other markers, which are hollow."""
    colour, marker, style = LINES[i % len(LINES)]
    look: dict[str, Any] = {"color": colour, "linestyle": style, "markersize": 4}
    if i >= len(LINES):
        marker = _HOLLOW[(i - len(LINES)) % len(_HOLLOW)]
        look |= {"markerfacecolor": "white", "markersize": 6}
    return look | {"marker": marker}
