"""`timeviper-fast eval`: the questions of a published set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any

import typer

from timeviper_fast.cli.app import MODEL_HELP, BackendName, Device, Dtype, Json, Quiet, named
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import ArgumentError, expect_folder

__all__ = ["eval"]

_SETS = "video-mme, video-mme-v2, lvbench, mlvu, longvideobench, charades-sta, mvbench"


def eval(
    name: Annotated[str, typer.Argument(metavar="SET", help=f"{_SETS} or perception-test.")],
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="The set's folder, as published.", callback=named)
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP, callback=named)] = TINY,
    out: Annotated[
        str, typer.Option(help="Folder of the results; a stopped run continues.", callback=named)
    ] = "eval",
    policy: Annotated[
        str | None,
        typer.Option("--sample", help="fps:1, uniform:128 and so on; default: the model's."),
    ] = None,
    style: Annotated[
        str, typer.Option(help="Prompt: paper, letter (asks for it alone) or question (alone).")
    ] = "paper",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 128,
    evidence: Annotated[
        bool,
        typer.Option(
            "--evidence",
            help="Score where the model looked (charades-sta, lvbench); asks one more question "
            "about each video.",
        ),
    ] = False,
    subtitles: Annotated[
        bool,
        typer.Option(
            "--subtitles",
            help="Show what is spoken while a frame is shown (video-mme, longvideobench).",
        ),
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Ask again what ended with an error.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
) -> None:
    """Ask the questions of a published set, and score the answers by the paper's and strict rules.

    Each video is read once for all of its questions. A video that cannot be read is a line with its
    error. Scores are of answered questions; the exit code is 1 if there are none.
    """
    with importing():
        from timeviper_fast.cli.terminal import err, progress_bars, say
        from timeviper_fast.evaluation.sets.catalogue import missing_videos, read_set
        from timeviper_fast.evaluation.sets.prompts import expect_style
        from timeviper_fast.evaluation.sets.row import LeftOut
        from timeviper_fast.evaluation.sets.run import expect_spans, run_eval
        from timeviper_fast.evaluation.sets.subtitles import subtitles_of
        from timeviper_fast.inference.request import Request
        from timeviper_fast.timeviper import TimeViper
        from tvkernels import use_backend
    # refuse every wrong option before the weights are loaded
    expect_folder("eval", "out", out)
    expect_style(style)
    Request("a question", policy=policy, max_new_tokens=max_new_tokens)
    left_out: list[LeftOut] = []
    rows = read_set(name, folder, left_out.append)
    if evidence:
        expect_spans(rows)
    if subtitles:
        subtitles_of(rows)
    if left_out and not quiet:
        need = "questions without candidates need a judge and are left out, the first at"
        say(err, f"{len(left_out)} {need} {left_out[0].where}")
    missing = missing_videos(rows)
    videos = len({row.video for row in rows})
    if len(missing) == videos:
        none = f"none of {len(missing)}, such as {missing[0]}"
        raise ArgumentError("eval", "folder", "hold the videos of its questions", none)
    if missing and not quiet:
        say(err, f"{len(missing)} of {videos} videos are missing: {_first(missing)}")
    with (
        use_backend(backend) if backend else nullcontext(),
        progress_bars(err, hidden=quiet) as progress,
    ):
        loaded = TimeViper.from_pretrained(
            model, device=device, dtype=dtype, progress=partial(progress, "weights")
        )
        options = {"policy": policy, "style": style, "max_new_tokens": max_new_tokens}
        options |= {"evidence": evidence, "subtitles": subtitles, "retry": retry}
        found = run_eval(loaded, rows, out, progress=progress, **options)  # type: ignore[arg-type]
    _show(found, as_json)
    if found["errors"]:
        say(err, f"{found['failed']} questions failed: {_first(list(found['errors']), '; ', 3)}")
    if not (quiet or as_json):
        say(err, f"wrote {out}")
    if not found["answered"]:
        raise typer.Exit(1)


def _first(things: Sequence[object], between: str = ", ", count: int = 5) -> str:
    """The first few of them, in words."""
    shown = between.join(map(str, things[:count]))
    return shown + (f"{between}and so on" if len(things) > count else "")


def _show(found: dict[str, Any], as_json: bool) -> None:
    """Print the scores as tables or as one JSON object."""
    from timeviper_fast.cli.evidence_table import print_evidence
    from timeviper_fast.cli.terminal import out, print_table, say

    if as_json:
        typer.echo(json.dumps(found))
        return
    say(
        out,
        f"{found['answered']} of {found['questions']} answered, {found['failed']} failed, "
        f"{found['missing']} without a video; neither rule reads {found['unread']} answers",
    )
    if "with_subtitles" in found:
        say(out, f"{found['with_subtitles']} of {found['questions']} have subtitles")
    for rule, scores in found["rules"].items():
        lines = _of_options(scores) if "micro" in scores else _of_spans(scores)
        print_table(out, (f"rule: {rule}", "score"), [*lines, ("unread", str(scores["unread"]))])
    print_evidence(out, "evidence", found.get("evidence", {}))


def _of_options(scores: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("micro: all questions", _counted(scores["micro"])),
        ("macro: mean over tasks", _percent(scores["macro"], 100)),
    ]
    for name, values in scores["groups"].items():
        lines += [(f"{name} {value}", _counted(score)) for value, score in values.items()]
    if grouped := scores.get("grouped"):
        lines.append((f"grouped: mean of {grouped['n']} groups", _percent(grouped["mean"])))
        lines.append(("groups not answered whole", str(grouped["incomplete"])))
        for name, values in grouped["by"].items():
            lines += [(f"grouped {name} {value}", _percent(mean)) for value, mean in values.items()]
    return lines


def _of_spans(scores: dict[str, Any]) -> list[tuple[str, str]]:
    recalls = [(f"R1@IoU{at}", _counted(score)) for at, score in scores["recall"].items()]
    average = ("average of these four", _percent(scores["average"]))
    return [("mIoU", _percent(scores["miou"])), *recalls, average]


def _counted(score: dict[str, Any]) -> str:
    from timeviper_fast.evaluation.score import Score

    return str(Score(score["right"], score["n"]))


def _percent(value: float | None, times: float = 1) -> str:
    return "-" if value is None else f"{times * value:.1f} %"
