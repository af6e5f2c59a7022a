"""Figures of an analysis: numbers as plain data, a JSON file of them, and a picture beside it.

A picture is drawn from its JSON file alone: `redraw` makes it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timeviper_fast.analysis.ask import Seen
from timeviper_fast.analysis.curves import Curve, Measure
from timeviper_fast.analysis.groups import VISION
from timeviper_fast.analysis.heads import normalised, numbers
from timeviper_fast.analysis.plots import draw
from timeviper_fast.analysis.view import LayerView, View
from timeviper_fast.atomic import whole_file
from timeviper_fast.errors import ArgumentError, expect_matplotlib, fail, is_integer

__all__ = [
    "curve_figure",
    "heads_of_most_vision",
    "is_figure",
    "kept_figure",
    "map_figure",
    "redraw",
    "share_figure",
    "sink_figure",
    "write_figure",
    "write_figures",
]

# where the numbers of each figure lie; one of them must be finite
_NUMBERS = {
    "map": "weights",
    "shares": "shares",
    "sinks": "mass",
    "kept": "kept",
    "curves": "lines",
}
_METRICS = ("accuracy", "log_likelihood", "per_token")


def heads_of_most_vision(view: View) -> dict[int, tuple[int, ...]]:
    """{layer: (head,)} for `Looking.maps`: of attention and of Mamba-2, the head whose chosen rows
    have the largest mean share on vision. A kind without such rows is left out."""
    best: dict[str, tuple[float, int, int]] = {}
    for layer in view.layers:
        shares = normalised(layer.absolute)[..., layer.groups.place(VISION)].mean(-1)
        for head, share in enumerate(shares.tolist()):
            if share > best.get(layer.kind, (0.0,))[0]:
                best[layer.kind] = (share, layer.layer, head)
    return {layer: (head,) for _, layer, head in best.values()}


def map_figure(
    seen: Seen, layer: int, head: int, *, title: str = "", columns: int = 1024
) -> dict[str, Any]:
    """The map of one head: chosen rows by all columns.

    Each row has absolute weights that sum to 1. Where a layer has more tokens than `columns`,
    neighbouring tokens of a group share a column, which has their mean. A run of a group that is no
    longer than an eighth of `columns` keeps a column for each token.

    Args:
        seen: with the head among `Looking.maps`.
        layer, head: their numbers.
        title: above the picture, such as the question.
        columns: about how many columns there are at most, 1 or more.

    Raises:
        ValueError: the view has no map of this head, or an argument breaks its rule.
    """
    if not (is_integer(columns) and columns >= 1):
        fail("map_figure", "columns", "be an integer of 1 or more", columns)
    views = {view.layer: view for view in seen.view.layers}
    if layer not in views or head not in views[layer].maps:
        known = [f"{view.layer}:{at}" for view in views.values() for at in view.maps]
        rule = f"name a head with a map ({', '.join(known) or 'there is none'})"
        raise ArgumentError("map_figure", "layer, head", rule, f"{layer}:{head}")
    view = views[layer]
    weights = view.maps[head].double().abs()[:, None]
    shares, column = normalised(weights)[:, 0], _columns(view.groups.number, columns)
    width = column.bincount()
    means = shares.new_zeros(len(shares), len(width)).index_add_(1, column, shares) / width
    first = width.cumsum(0) - width
    return {
        "figure": "map",
        "title": title,
        "layer": layer,
        "kind": view.kind,
        "head": head,
        "with_dt": seen.view.with_dt,
        "groups": [*view.groups.names],
        "rows": view.chosen.tolist(),
        "row_groups": view.groups.number[view.chosen].tolist(),
        "columns": {
            "first": first.tolist(),
            "tokens": width.tolist(),
            "groups": view.groups.number[first].tolist(),
            "seconds": numbers(view.groups.seconds(seen.token_seconds)[first]),
        },
        "weights": [[x if x is None else float(f"{x:.6g}") for x in row] for row in numbers(means)],
    }


def _columns(group: Tensor, most: int) -> Tensor:
    """(n,) the column of each token: runs of a group, cut into equal parts. Runs that are short
    beside `most`, such as a question behind a long video, keep a column for each token."""
    _, lengths = group.unique_consecutive(return_counts=True)
    width = torch.where(lengths > most // 8, max(1, -(-len(group) // most)), 1)
    place = torch.arange(len(group)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return (place % width.repeat_interleave(lengths) == 0).cumsum(0) - 1


def share_figure(seen: Seen, *, title: str = "") -> dict[str, Any]:
    """How much the chosen rows of each group look at each group, by layer: `LayerView.scores`.

    `shares` are [source][target][layer]; a layer without rows of the source has None.
    """
    layers, names = seen.view.layers, seen.view.names
    counts = [_row_counts(view) for view in layers]
    shares = {}
    for a, source in enumerate(names):
        if any(count[a] for count in counts):
            shares[source] = {
                target: [
                    _number(view.scores[a, b].item()) if count[a] else None
                    for view, count in zip(layers, counts)
                ]
                for b, target in enumerate(names)
                if any(view.groups.count(target) for view in layers)
            }
    return {"figure": "shares", "title": title, **_layers(seen.view), "shares": shares}


def _row_counts(view: LayerView) -> list[int]:
    """Chosen rows of each group."""
    rows = view.groups.number[view.chosen]
    return rows.bincount(minlength=len(view.groups.names)).tolist()


def sink_figure(seen: Seen, *, title: str = "") -> dict[str, Any]:
    """Mass on the first tokens by layer: the mean over heads, the least and the most of a head, and
    the share that equal weights would have."""
    sinks = [view.sink for view in seen.view.layers]
    return {
        "figure": "sinks",
        "title": title,
        **_layers(seen.view),
        "mass": [_number(sink.mass.mean().item()) for sink in sinks],
        "least": [_number(sink.mass.min().item()) for sink in sinks],
        "most": [_number(sink.mass.max().item()) for sink in sinks],
        "uniform": [_number(sink.uniform) for sink in sinks],
    }


def kept_figure(seen: Seen, *, title: str = "") -> dict[str, Any]:
    """How many tokens of each frame enter each layer; `kept` is [layer][frame]."""
    frames = len(seen.frame_tokens)
    first = torch.tensor([0, *seen.frame_tokens]).cumsum(0)[:-1].tolist()
    seconds = seen.token_seconds.tolist()
    kept = []
    for view in seen.view.layers:
        frame = view.groups.frames(seen.frame_tokens)
        kept.append(frame[frame >= 0].bincount(minlength=frames).tolist())
    return {
        "figure": "kept",
        "title": title,
        **_layers(seen.view),
        "seconds": [seconds[at] if n else None for at, n in zip(first, seen.frame_tokens)],
        "tokens": [*seen.frame_tokens],
        "kept": kept,
    }


def curve_figure(
    curves: Sequence[Curve], metric: str = "accuracy", *, name: str = "", title: str = ""
) -> dict[str, Any]:
    """Blocking or redundancy curves over layers: a line for each blocking, or each drop rate.

    Args:
        curves: one or more, of the same examples.
        metric: "accuracy", "log_likelihood" or "per_token", as in `Measure`.
        name: of the metric on the axis, such as "mIoU" where the judge gives overlaps.
        title: above the picture.

    Raises:
        ValueError: no curve, or another metric.
    """
    if not curves:
        fail("curve_figure", "curves", "hold a curve or more", curves)
    if metric not in _METRICS:
        fail("curve_figure", "metric", f"be one of {', '.join(_METRICS)}", metric)
    lines = []
    for curve in curves:
        for drop in dict.fromkeys(point.drop for point in curve.points):
            points = [point for point in curve.points if point.drop == drop]
            lines.append(
                {
                    "label": _label(curve, drop),
                    "layers": [point.layer for point in points],
                    "values": [_metric(point, metric) for point in points],
                    "whole": _metric(curve.whole, metric),
                    "n": curve.whole.n,
                    "settings": curve.settings,
                }
            )
    return {
        "figure": "curves",
        "title": title,
        "kind": curves[0].settings["kind"],
        "metric": metric,
        "name": name or metric.replace("_", " "),
        "lines": lines,
    }


def _metric(measure: Measure, metric: str) -> float | None:
    return _number(getattr(measure, metric))


def _label(curve: Curve, drop: float | None) -> str:
    done = curve.settings
    if done["kind"] == "redundancy":
        return f"{done['select']}, {100 * (drop or 0):g} % dropped"
    rows = " and ".join({"instruction": "V2I", "response": "V2R"}[row] for row in done["rows"])
    grade = "attention alone" if done["grade"] is None else f"Mamba-2 {done['grade']}"
    return f"{rows}, {grade}" + ("" if done["transfer"] else ", transfer open")


def _layers(view: View) -> dict[str, Any]:
    """Which layers a figure has, and which it has not."""
    return {
        "layers": [layer.layer for layer in view.layers],
        "kinds": [layer.kind for layer in view.layers],
        "depths": [*view.depths],
        "with_dt": view.with_dt,
        "skipped": [*view.skipped],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite(values: Any) -> Iterable[float]:
    """The finite numbers of nested lists and objects; of a curve's line, its points."""
    if isinstance(values, dict):
        values = values["values"] if "values" in values else [*values.values()]
    if isinstance(values, list):
        for part in values:
            yield from _finite(part)
    elif isinstance(values, (int, float)) and math.isfinite(values):
        yield values


def write_figure(
    figure: dict[str, Any], stem: str | PathLike[str], *, picture: bool = True
) -> list[Path]:
    """Write the numbers of a figure to `<stem>.json` and its picture to `<stem>.png`.

    Args:
        figure: what one of the functions above returned.
        stem: path of both files without a suffix; missing directories are made.
        picture: whether there is a picture; it needs matplotlib (extra `plot`).

    Raises:
        ValueError: no finite number, or matplotlib is not installed.
        OSError: a file cannot be written; one of that name is as it was.
    """
    if picture:
        expect_matplotlib("write_figure", "plot")
    _check("write_figure", figure, "figure")
    path = Path(stem)
    path = path.with_name(f"{path.name}.json")
    with whole_file(path) as partial:
        partial.write_text(json.dumps(figure, allow_nan=False) + "\n", encoding="utf-8")
    return [path, redraw(path)] if picture else [path]


def write_figures(
    seen: Seen,
    folder: str | PathLike[str],
    *,
    mapped: Seen | None = None,
    title: str = "",
    picture: bool = True,
) -> list[Path]:
    """Write the figures of a view: `shares`, `sinks`, `kept`, and `map-LAYER-HEAD` of each map.

    Args:
        seen: what the layers look at.
        folder: directory of the files; it is made.
        mapped: the view whose maps are drawn; None: `seen`.
        title: above the pictures.
        picture: whether there are pictures beside the JSON files.

    Raises:
        ValueError, OSError: as `write_figure`.
    """
    figures = {"shares": share_figure, "sinks": sink_figure, "kept": kept_figure}
    told = {name: of(seen, title=title) for name, of in figures.items()}
    mapped = mapped or seen
    for view in mapped.view.layers:
        for head in view.maps:
            name = f"map-{view.layer}-{head}"
            told[name] = map_figure(mapped, view.layer, head, title=title)
    stem = Path(folder)
    written = [write_figure(own, stem / name, picture=picture) for name, own in told.items()]
    return [path for paths in written for path in paths]


def is_figure(path: str | PathLike[str]) -> bool:
    """Whether it is a file of `write_figure`, by its content."""
    try:
        return _kind(json.loads(Path(path).read_text(encoding="utf-8"))) is not None
    except ValueError:
        return False


def redraw(path: str | PathLike[str]) -> Path:
    """Draw the picture of a JSON file that `write_figure` wrote, beside it, and return its path.

    Raises:
        ValueError: another file, or matplotlib is not installed.
        OSError: a file cannot be read or written.
    """
    expect_matplotlib("redraw", "plot")
    source = Path(path)
    try:
        figure = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArgumentError("redraw", "path", "be a JSON file", source) from error
    _check("redraw", figure, "path", source)
    target = source.with_name(f"{source.name.removesuffix('.json')}.png")
    with whole_file(target) as partial:
        draw(figure).savefig(partial, format="png", dpi=150)
    return target


def _kind(figure: Any) -> str | None:
    kind = figure.get("figure") if isinstance(figure, dict) else None
    return kind if kind in _NUMBERS and _NUMBERS[kind] in figure else None


def _check(owner: str, figure: Any, argument: str, shown: object = None) -> None:
    """Refuse what is no figure, or has no finite number."""
    kind = _kind(figure)
    if kind is None:
        rule = f"be a figure ({', '.join(_NUMBERS)})"
        raise ArgumentError(owner, argument, rule, shown or type(figure).__name__)
    if next(iter(_finite(figure[_NUMBERS[kind]])), None) is None:
        raise ArgumentError(owner, argument, f"hold a finite number ({kind})", shown or "none")
