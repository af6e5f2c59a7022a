"""The curves of a run of `train_tiny`: errors of the vision encoder, accuracy of the model."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from timeviper_fast.errors import expect_matplotlib, fail
from timeviper_fast.evaluation.rows import write_json

__all__ = ["draw_curves", "read_curves"]

_ERRORS = {
    "first": "first glyph",
    "second": "second glyph",
    "false": "plain frame read as a needle",
}
_SHARES = {"sample_accuracy": "answers", "token_accuracy": "tokens of answers"}


def read_curves(folder: str | Path, window: int = 10) -> dict[str, list[dict[str, Any]]]:
    """The numbers of the curves, from the logs of the run in `folder`.

    Args:
        folder: the folder of `train_tiny`.
        window: lines of the language model's metrics that are averaged into one point.

    Returns:
        "vision": one point for each line of the encoder's log, with shares of errors on held-out
        frames. "language": points with phase, step and step from the first phase on, loss, and
        shares of right tokens and answers in training.

    Raises:
        ValueError: the folder holds no such logs.
    """
    logs = [Path(folder) / "vision" / "log.jsonl", Path(folder) / "language" / "metrics.jsonl"]
    if missing := [str(log) for log in logs if not log.exists()]:
        fail("read_curves", "folder", "hold the logs of a run of train_tiny", missing[0])
    vision, language = ([json.loads(line) for line in log.open(encoding="utf-8")] for log in logs)
    points, before = [], 0
    for phase, group in groupby(language, key=lambda line: line["phase"]):
        lines = [line for line in group if line["kind"] == "train"]
        for start in range(0, len(lines), window):
            part = lines[start : start + window]
            means = {name: fmean(line[name] for line in part) for name in ("loss", *_SHARES)}
            step = part[-1]["step"]
            points.append({"phase": phase, "step": step, "steps": before + step, **means})
        before += lines[-1]["step"]
    return {"vision": vision, "language": points}


def draw_curves(folder: str | Path, path: str | Path) -> None:
    """Draw the curves of a run as a PNG file, and write their numbers beside it as JSON."""
    expect_matplotlib("figures", "evaluation")
    from matplotlib.figure import Figure

    curves, path = read_curves(folder), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 3.4), dpi=150)
    left, right = figure.subplots(1, 2)
    steps = [point["step"] for point in curves["vision"]]
    for level, style in (("study", "-"), ("hard", ":")):
        for colour, (name, words) in zip(("#0072B2", "#E69F00", "#CC3311"), _ERRORS.items()):
            errors = [100 * point[level][name] for point in curves["vision"]]
            left.plot(steps, errors, style, color=colour, label=f"{words}, {level}")
    left.set(xlabel="step", ylabel="error, % (below 0.01: linear)", title="vision encoder")
    left.set_yscale("symlog", linthresh=0.01)
    for colour, (name, words) in zip(("#0072B2", "#E69F00"), _SHARES.items()):
        points = curves["language"]
        shares = [100 * point[name] for point in points]
        right.plot([point["steps"] for point in points], shares, color=colour, label=words)
    for phase, group in groupby(curves["language"], key=lambda point: point["phase"]):
        first = next(group)
        right.axvline(first["steps"] - first["step"], color="#999999", linewidth=0.7)
        right.text(first["steps"] - first["step"], 101, phase, fontsize=7)
    right.set(xlabel="step", ylabel="right, % (in training)", title="language model", ylim=(0, 108))
    for axes in (left, right):
        axes.legend(fontsize=6)
        axes.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path)
    write_json(path.with_suffix(".json"), curves)
