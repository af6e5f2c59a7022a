"""`timeviper-fast analyse`: what each layer looks at for a question about a video."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timeviper_fast.cli.app import (
    MODEL_HELP,
    VIDEO_HELP,
    BackendName,
    Device,
    Dtype,
    FrameBatch,
    Json,
    Quiet,
    Salvage,
    Sample,
    StagesText,
    named,
)
from timeviper_fast.cli.ask import source_of
from timeviper_fast.cli.inspect import config_of
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.cli.session import format_of, refuse_opening
from timeviper_fast.embedded.models import TINY, embedded_directory
from timeviper_fast.errors import ArgumentError, expect_folder, expect_matplotlib
from timeviper_fast.inference.request import Question, Request

if TYPE_CHECKING:
    from timeviper_fast.analysis.ask import Seen
    from timeviper_fast.analysis.look import Looking
    from timeviper_fast.inference.session import Session
    from timeviper_fast.timeviper import TimeViper
    from timeviper_fast.video import Progress, Video

__all__ = ["analyse"]


def _replot(folder: str | None) -> None:
    """Draw the pictures of a folder again, and leave."""
    if folder is None:
        return
    expect_matplotlib("analyse", "plot")
    with importing():
        from timeviper_fast.analysis.figures import is_figure, redraw
    files = [path for path in sorted(Path(folder).expanduser().glob("*.json")) if is_figure(path)]
    if not files:
        raise ArgumentError("", "replot", "be a directory with figures of analyse", folder)
    for path in files:
        typer.echo(redraw(path))
    raise typer.Exit


def analyse(
    context: typer.Context,
    video: Annotated[str, typer.Argument(help=VIDEO_HELP, callback=named)],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: Annotated[str, typer.Option(help=MODEL_HELP, callback=named)] = TINY,
    out: Annotated[
        str, typer.Option(help="Folder of the figures and their numbers.", callback=named)
    ] = "analysis",
    heads: Annotated[
        str | None,
        typer.Option(
            help="layer:head,... of the maps; default: of attention and of Mamba-2 the head that "
            "looks most at vision. The paper shows of its 9B 0:8,20:98,38:116,52:116 (Mamba-2) and "
            "14:3,21:27,30:22,39:16 (attention)."
        ),
    ] = None,
    with_dt: Annotated[
        bool,
        typer.Option(
            "--with-dt/--without-dt",
            help="Whether Mamba-2's weights hold dt; TimeViper's released code leaves it out.",
        ),
    ] = True,
    policy: Sample = None,
    start: Annotated[str | None, typer.Option(help="Look at the video from here on.")] = None,
    end: Annotated[str | None, typer.Option(help="Look at the video up to here.")] = None,
    stages: StagesText = None,
    answer: Annotated[
        str | None,
        typer.Option(help="The answer to look at, which may be empty; default: the model's own."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest own answer, in tokens.")] = 64,
    mention_duration: Annotated[
        bool | None,
        typer.Option(help="Tell it the video's length and frame count; default: the model's."),
    ] = Request.mention_duration,
    salvage: Salvage = False,
    frame_batch: FrameBatch = Request.frame_batch,
    figures: Annotated[
        bool, typer.Option(help="Draw pictures beside the JSON files (extra plot).")
    ] = True,
    replot: Annotated[
        str | None,
        typer.Option(
            help="Draw the pictures of such a folder again, and do nothing else.",
            callback=_replot,
            is_eager=True,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
) -> None:
    """Show what each layer looks at: a table, figures, and their numbers as JSON.

    The question is answered first; then the prompt and the answer are read at once. Of a .session
    file, Mamba-2 layers below the asking stage are not shown: their tokens are in a state.
    """
    with importing():
        from timeviper_fast.analysis.figures import write_figures
        from timeviper_fast.analysis.look import Looking, check_maps
        from timeviper_fast.cli.output import writable, write
        from timeviper_fast.cli.terminal import err, progress_bars, say
        from timeviper_fast.timeviper import TimeViper
        from tvkernels import use_backend
    # refuse every wrong option before the weights are loaded
    request = Request(
        question,
        max_new_tokens,
        mention_duration=mention_duration,
        policy=policy,
        start=start,
        end=end,
        frame_batch=frame_batch,
        on_error="use" if salvage else "raise",
    )
    looking = Looking(maps=_heads(heads), with_dt=with_dt, by_head=False)
    level = format_of(video)
    if level not in (None, "features", "session"):
        raise ArgumentError("", "VIDEO", "be a video, a .features or a .session file", video)
    if level is not None:
        refuse_opening(context, video, level)
    expect_folder("analyse", "out", out)
    inputs = (video, str(embedded_directory(model) or model))
    target = writable(str(Path(out) / "analysis.json"), inputs, "out")
    if figures:
        expect_matplotlib("analyse", "plot")
    if looking.maps:
        check_maps(config_of(model, "model").backbone, looking.maps)
    with (
        use_backend(backend) if backend else nullcontext(),
        progress_bars(err, hidden=quiet) as progress,
        source_of(video, level, request, progress) as source,
    ):
        loaded = TimeViper.from_pretrained(
            model, device=device, dtype=dtype, stages=stages, progress=partial(progress, "weights")
        )
        session = loaded.load_session(video) if level == "session" else None
        look, own, notes = _reader(loaded, session or source or video, request, progress)
        ids, text = own() if answer is None else (_ids(loaded, answer), answer)
        seen, mapped = _looked(look, ids, looking)
    for note in () if quiet else notes:
        say(err, f"{video}: {note}")
    told = {"model": model, "video": video, "question": question, "answer": text, **_told(seen)}
    files = write_figures(seen, target.parent, mapped=mapped, title=question, picture=figures)
    told["files"] = [str(path) for path in files]
    write(target, json.dumps(told, indent=1))
    _show(told, as_json)
    if not (quiet or as_json):
        say(err, f"wrote {len(files) + 1} files to {out}")


def _heads(text: str | None) -> dict[int, tuple[int, ...]]:
    """{layer: heads} of "layer:head,..."."""
    found: dict[int, tuple[int, ...]] = {}
    for pair in text.split(",") if text is not None else ():
        layer, colon, head = pair.strip().partition(":")
        if not (colon and layer.isdecimal() and head.isdecimal()):
            rule = "be layer:head pairs such as 14:3,21:27"
            raise ArgumentError("", "heads", rule, repr(text))
        found[int(layer)] = tuple(dict.fromkeys((*found.get(int(layer), ()), int(head))))
    return found


def _ids(model: TimeViper, text: str) -> list[int]:
    """Token ids of an answer in words."""
    tokenizer: Any = model.tokenizer
    return [*tokenizer(text, add_special_tokens=False)["input_ids"]]


def _reader(
    model: TimeViper, video: Session | Video | str, request: Request, progress: Progress
) -> tuple[Callable[..., Seen], Callable[[], tuple[Sequence[int], str]], tuple[str, ...]]:
    """Functions that look at the prompt and an answer, and that answer; notes about the video."""
    from timeviper_fast.analysis.ask import look_asked, prompted
    from timeviper_fast.inference.session import Session

    if not isinstance(video, Session):
        read = prompted(model, model.tokenizer, video, request, request, progress)
        return read.look, partial(read.answer, request.max_new_tokens), read.notes
    session = video
    mention, most = request.mention_duration, request.max_new_tokens
    asked = Question(request.question, most, mention_duration=mention)

    def answer() -> tuple[Sequence[int], str]:
        said = session.ask(asked.question, max_new_tokens=most, mention_duration=mention)
        return said.token_ids, said.text

    return partial(look_asked, session, asked), answer, session.footage.all_notes


def _looked(
    look: Callable[..., Seen], answer: Sequence[int], looking: Looking
) -> tuple[Seen, Seen]:
    """The view, and one with maps: of the wanted heads, else of those that look most at vision."""
    from timeviper_fast.analysis.figures import heads_of_most_vision

    seen = look(answer, looking)
    if skipped := [layer for layer in looking.maps if layer in seen.view.skipped]:
        rule = "name layers that a session shows"
        raise ArgumentError("", "heads", rule, f"layer {skipped[0]}", seen.view.skipped[skipped[0]])
    if looking.maps:
        return seen, seen
    best = heads_of_most_vision(seen.view)
    return seen, look(answer, replace(looking, maps=best)) if best else seen


def _told(seen: Seen) -> dict[str, Any]:
    """The view as plain numbers; maps have files of their own."""
    told = seen.view.to_dict()
    for layer in told["layers"]:
        del layer["maps"]
    return told


def _show(told: dict[str, Any], as_json: bool) -> None:
    """Print the answer and a table of the layers, or one JSON object."""
    if as_json:
        typer.echo(json.dumps(told))
        return
    from timeviper_fast.cli.terminal import out, print_table, say

    say(out, told["answer"] or "(no answer)")
    say(out, "\nshares of what the question and the answer look at, and the first token's\n")
    names = [name for name in told["groups"] if any(own["tokens"][name] for own in told["layers"])]
    rows = []
    for layer in told["layers"]:
        shares = dict(zip(told["groups"], layer["shares"]))
        masses = [mass for mass in layer["sink"]["mass"] if mass is not None]
        sink = sum(masses) / len(masses) if masses else None
        tokens = f"{sum(layer['tokens'].values()):,}"
        cells = [_percent(shares[name]) for name in names]
        rows.append((str(layer["layer"]), layer["kind"], tokens, *cells, _percent(sink)))
    print_table(out, ("layer", "kind", "tokens", *names, "sink"), rows)
    for layer, why in told["skipped"].items():
        say(out, f"layer {layer} is not shown: {why}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
