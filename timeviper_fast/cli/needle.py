"""`timeviper-fast needle`: questions that only a few of thousands of frames answer."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from timeviper_fast.cli.app import MODEL_HELP, BackendName, Device, Dtype, Json, named
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import expect_folder, expect_matplotlib, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from timeviper_fast.evaluation.film import ImageNeedle
    from timeviper_fast.evaluation.needle import NeedlePlan
    from timeviper_fast.evaluation.rows import Row
    from timeviper_fast.evaluation.trial import Haystack
    from timeviper_fast.timeviper import TimeViper

__all__ = ["items", "needle"]

_Item = TypeVar("_Item", int, float, str)
_TASKS, _LEVEL, _FPS = "sign,colour,chain", "study", 1.0


def needle(
    haystack: Annotated[
        list[str] | None,
        typer.Argument(help="Video files, joined; default: frames of the synthetic world."),
    ] = None,
    *,
    model: Annotated[str, typer.Option(help=MODEL_HELP, callback=named)] = TINY,
    out: Annotated[
        str,
        typer.Option(help="Folder of the results; a stopped run continues.", callback=named),
    ] = "needles",
    frames: Annotated[
        str, typer.Option(help="Lengths of videos; default: 64,1000,10000, or the form's.")
    ] = "",
    depths: Annotated[
        int | None,
        typer.Option(help="Number of depths, first to last frame; default: 11, or the form's."),
    ] = None,
    videos: Annotated[int, typer.Option(help="Videos of each length.")] = 11,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Some of sign, colour, chain, count, when, order; no-sign, no-colour, no-chain "
            f"and no-count ask about absent things; default: {_TASKS}."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the frames and places.")] = 1_000_003,
    keep: Annotated[str, typer.Option(help="Keep values of the asking stage.")] = "",
    control: Annotated[
        str,
        typer.Option(
            help="Some of blind, no-video, needle-only, uniform, raw, normed, no-transfer."
        ),
    ] = "",
    form: Annotated[
        str, typer.Option(help="Form of the test: ours, v-niah or videochat-flash.")
    ] = "ours",
    level: Annotated[
        str | None, typer.Option(help="Level of the synthetic world: study (default) or hard.")
    ] = None,
    pool: Annotated[
        int | None, typer.Option(help="Plain frames to draw from; default: 12,000 or more.", min=2)
    ] = None,
    held_out: Annotated[
        bool, typer.Option(help="Ask in wordings that training never uses.")
    ] = False,
    needle: Annotated[
        str | None, typer.Option(help="An image, or a JSON list of several; needs video files.")
    ] = None,
    question: Annotated[str, typer.Option(help="The question about the image.")] = "",
    options: Annotated[str, typer.Option(help="The choices, as red,blue.")] = "",
    answer: Annotated[str, typer.Option(help="The true answer.")] = "",
    fps: Annotated[
        float | None, typer.Option(help="Frames per second of the video files; default: 1.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 16,
    evidence: Annotated[
        bool,
        typer.Option(
            "--evidence", help="Score the evidence too; asks one more question about each video."
        ),
    ] = False,
    figures: Annotated[bool, typer.Option(help="Draw heat maps (needs matplotlib).")] = True,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
) -> None:
    """Ask about a few frames among thousands.

    Each row of the table has the share of right answers, its 95 % interval, and the counts; then
    the needed frames kept, and the answers whose needed frame had the largest score.
    """
    with importing():
        from timeviper_fast.cli.terminal import err, progress_bars, say
        from timeviper_fast.evaluation.controls import variants
        from timeviper_fast.evaluation.figures import write_results
        from timeviper_fast.evaluation.needle import NeedlePlan, run_needles
        from timeviper_fast.timeviper import TimeViper
        from tvkernels import use_backend
    plan = NeedlePlan(
        **_grid(form, frames, depths),
        videos=videos,
        seed=seed,
        keeps=tuple(items(keep, float, "keep")),
        controls=tuple(items(control, str, "control")),
        max_new_tokens=max_new_tokens,
        form=form,
        evidence=evidence,
    )
    # refuse every wrong option before the extras are imported and the weights are loaded
    of_world = {"tasks": tasks, "level": level, "pool": pool, "held_out": held_out or None}
    of_image = {"question": question, "options": options, "answer": answer}
    _expect_used(haystack, needle, of_world, of_image, {"fps": fps})
    images = _images(haystack, needle, question, options, answer)
    tasks = _TASKS if tasks is None else tasks
    level = _LEVEL if level is None else level
    fps = _FPS if fps is None else fps
    longest = max(plan.frames)
    asked, plain = ([], 0) if haystack else _of_world(tasks, level, pool, plan.frames)
    plan.expect_tasks(len(images or asked))
    expect_folder("needle", "out", out)
    if not fps > 0:
        fail("needle", "fps", "be a number above 0", fps)
    if figures:
        expect_matplotlib("figures", "evaluation")
    with (
        use_backend(backend) if backend else nullcontext(),
        progress_bars(err, hidden=quiet) as progress,
    ):
        loaded = TimeViper.from_pretrained(
            model, device=device, dtype=dtype, progress=partial(progress, "weights")
        )
        if loaded.tokenizer is None:
            fail("needle", "model", "have a tokenizer", model)
        # raise the errors of keep and control before thousands of frames are encoded
        variants(loaded.backbone.stages, plan.keeps, plan.controls)
        made: Haystack
        if haystack:
            made = _films(loaded, haystack, images, longest, fps, progress)
        else:
            made = _world(loaded, asked, plan, level, plain, held_out, Path(out), progress)
        rows = run_needles(loaded, loaded.tokenizer, made, plan, Path(out), progress=progress)
    foot = made.foot if form == "ours" else f"in the form of {form}; {made.foot}"
    write_results(rows, Path(out), foot, figures=figures)
    _show(rows, foot, as_json)
    if not (quiet or as_json):
        say(err, f"{foot}\nwrote {out}")


def _show(rows: Sequence[Row], foot: str, as_json: bool) -> None:
    """Print the results as a table or as one JSON object."""
    from timeviper_fast.cli.evidence_table import print_evidence
    from timeviper_fast.cli.terminal import out, print_table
    from timeviper_fast.evaluation.figures import order, summary

    results = summary(rows)
    if as_json:
        typer.echo(json.dumps({"haystack": foot, "results": results, "order": order(rows)}))
        return
    header = ("frames", "task", "control", "keep", "right", "needed frames kept", "found")
    whole = [result for result in results if not result["hops"]]
    print_table(out, header, [_line(result) for result in whole])
    looked = {_name(r): r["evidence"] for r in whole if "evidence" in r}
    print_evidence(out, "frames, task", looked)


def items(text: str, kind: Callable[[str], _Item], name: str) -> list[_Item]:
    """The values between commas; [] for a blank text."""
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        fail("needle", name, "be numbers with commas between them", text)


def _grid(form: str, frames: str, depths: int | None) -> dict[str, Any]:
    """Lengths and depths: those given, or those of the form."""
    from timeviper_fast.evaluation.forms import form_of
    from timeviper_fast.evaluation.needle import NeedlePlan

    own = form_of(form) or NeedlePlan
    lengths = tuple(items(frames, int, "frames"))
    return {"frames": lengths or own.frames, "depths": own.depths if depths is None else depths}


def _expect_used(
    films: Sequence[str] | None,
    needle: str | None,
    of_world: dict[str, Any],
    of_image: dict[str, str],
    of_films: dict[str, Any],
) -> None:
    """Refuse options that the rest of the command line leaves without effect; None is not given."""
    unused = {} if films is None else dict.fromkeys(of_world, "be given without video files")
    if films is None:
        unused |= dict.fromkeys(of_films, "be given with video files")
    if needle is None or needle.endswith(".json"):
        rule = "be given with --needle and an image (a JSON list has its own)"
        unused |= dict.fromkeys(of_image, rule)
    given = of_world | of_films | {name: text or None for name, text in of_image.items()}
    for name, rule in unused.items():
        if given[name] is not None:
            fail("needle", name, rule, given[name])


def _of_world(
    tasks: str, level: str, pool: int | None, frames: Sequence[int]
) -> tuple[list[str], int]:
    """The tasks of the synthetic world, and the number of its plain frames, checked."""
    from timeviper_fast.evaluation.synthetic import FEWEST, expect_world

    asked = items(tasks, str, "tasks")
    expect_world(asked, level)
    if min(frames) < FEWEST:
        fail("needle", "frames", f"be at least {FEWEST}", min(frames))
    longest = max(frames)
    plain = max(12_000, longest) if pool is None else pool
    if plain < longest:
        fail("needle", "pool", f"have the longest video's {longest:,} frames", plain)
    return asked, plain


def _images(
    films: Sequence[str] | None, needle: str | None, question: str, options: str, answer: str
) -> list[ImageNeedle]:
    """The image needles that the options describe."""
    from timeviper_fast.evaluation.film import ImageNeedle, read_needles

    if bool(films) != bool(needle):
        rule = "be given with video files, and they with it"
        fail("needle", "needle", rule, needle)
    if needle is None:
        return []
    if needle.endswith(".json"):
        return read_needles(needle)
    return [ImageNeedle(needle, question, answer, tuple(items(options, str, "options")))]


def _films(
    model: TimeViper,
    films: Sequence[str],
    needles: Sequence[ImageNeedle],
    frames: int,
    fps: float,
    progress: Callable[[str, int, int], None],
) -> Haystack:
    from timeviper_fast.evaluation.film import FilmHaystack

    return FilmHaystack.read(model, films, needles, frames=frames, fps=fps, progress=progress)


def _world(
    model: TimeViper,
    tasks: Sequence[str],
    plan: NeedlePlan,
    level: str,
    plain: int,
    held_out: bool,
    out: Path,
    progress: Callable[[str, int, int], None],
) -> Haystack:
    from timeviper_fast.evaluation.needle import settings_of
    from timeviper_fast.evaluation.rows import expect_settings
    from timeviper_fast.evaluation.synthetic import SyntheticHaystack
    from timeviper_fast.synthetic.pool import PoolSize

    size = PoolSize(plain=plain)
    facts = {"world": level, "seed": plan.seed, "pool": asdict(size)}
    facts |= {"tasks": tasks, "held_out": held_out}
    # before the pool is rendered
    expect_settings(out / "settings.json", settings_of(model, plan) | facts)
    return SyntheticHaystack.render(
        model,
        tasks,
        seed=plan.seed,
        level=level,
        size=size,
        held_out=held_out,
        progress=progress,
    )


def _name(result: dict[str, Any]) -> str:
    """The length, task and variant of a result in one cell."""
    control = "" if result["control"] == "none" else f", {result['control']}"
    return f"{result['frames']:,} {result['task']}, keep {result['keep']:g}{control}"


def _line(result: dict[str, Any]) -> tuple[str, ...]:
    from timeviper_fast.evaluation.score import Score

    right, kept, when = (
        Score(result[name]["right"], result[name]["n"]) for name in ("answers", "kept", "when")
    )
    control = "" if result["control"] == "none" else result["control"]
    return (
        f"{result['frames']:,}",
        result["task"],
        control,
        f"{result['keep']:g}",
        str(right),
        str(kept),
        str(when),
    )
