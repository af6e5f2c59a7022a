"""`timeviper-fast demo`: the embedded model answers questions whose answers are known."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timeviper_fast.cli.app import VIDEO_HELP, Json, named
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.cli.page import serve_page
from timeviper_fast.cli.serve import expect_libraries
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import VideoError, expect_folder, fail
from timeviper_fast.inference.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from timeviper_fast.demo import DemoVideo
    from timeviper_fast.inference.answer import Answer

__all__ = ["demo"]

_QUESTION = "What does the sign say?"
_DIRECTORY = "demo-output"
_TOKENS = 24


def demo(
    video: Annotated[
        str | None,
        typer.Argument(
            help=f"{VIDEO_HELP} Default: one of the synthetic world is written.", callback=named
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Option(help=f"What to ask about VIDEO; default: {_QUESTION}")
    ] = None,
    directory: Annotated[
        str | None,
        typer.Option(help=f"Where the video is written; default: {_DIRECTORY}.", callback=named),
    ] = None,
    seconds: Annotated[
        int | None, typer.Option(help="Length of the video written; default: 64.", min=32)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Another seed: another video and other questions; default: 0.", min=0),
    ] = None,
    as_json: Json = False,
    page: Annotated[
        bool, typer.Option("--page", help="Ask in a browser, at this machine alone.")
    ] = False,
    media_root: Annotated[
        str | None,
        typer.Option(
            help="With --page: folder whose videos are listed; default: where it is written.",
            callback=named,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="With --page; 0: one that is free; default: 8000."),
    ] = None,
) -> None:
    """Ask the small trained model of the package about a video of the synthetic world.

    Its answers are compared with the true ones; exit code 1 says that one is wrong. It can also be
    asked about a VIDEO of your own, but it knows the synthetic world alone. With --page you ask.
    """
    written = {"directory": directory, "seconds": seconds, "seed": seed}
    if page:
        _refuse("without --page", video=video, question=question, as_json=as_json or None)
        expect_libraries(page=True)
    else:
        _refuse("with --page", media_root=media_root, port=port)
    if media_root is not None:
        _refuse("without --media-root", **written)
    if question is not None and video is None:
        fail("demo", "question", "be given with a video", question)
    with importing():
        from timeviper_fast.demo import DemoVideo

    port = 8000 if port is None else port
    if media_root is not None:
        serve_page(media_root, port, {})
        return
    if video is not None:
        _refuse("without a video of your own", **written)
        asked = _QUESTION if question is None else question
        _ask(video, Request(asked, max_new_tokens=_TOKENS), as_json)
        return
    directory = _DIRECTORY if directory is None else directory
    expect_folder("demo", "directory", directory)
    made = DemoVideo(0 if seed is None else seed, 64 if seconds is None else seconds)
    if page:
        _serve(made, Path(directory), port)
        return
    wrong = _ask_and_check(made, Path(directory), as_json)
    if wrong:
        count = "an answer is" if wrong == 1 else f"{wrong} answers are"
        typer.echo(f"timeviper-fast: {count} wrong", err=True)
        raise typer.Exit(1)


def _refuse(rule: str, **given: object) -> None:
    """Refuse whatever is given of some options."""
    for name, value in given.items():
        if value is not None:
            fail("demo", name, f"be given {rule}", value)


def _serve(made: DemoVideo, directory: Path, port: int) -> None:
    """Write the demo's video, and let people ask about it in a browser."""
    with importing():
        from timeviper_fast.cli.terminal import err, progress_bars

    path = _path(made, directory)
    with progress_bars(err) as progress:
        made.write(path, partial(progress, "video"))
    serve_page(str(directory), port, {path.name: [question.text for question in made.questions]})


def _path(made: DemoVideo, directory: Path) -> Path:
    return directory / f"demo-{made.seed}-{made.seconds}s.mp4"


def _ask(video: str, request: Request, as_json: bool) -> None:
    """Answer one question about a video of the user's own."""
    with importing():
        from timeviper_fast.cli.terminal import err, progress_bars, say, show
        from timeviper_fast.inference.ask import answer
        from timeviper_fast.timeviper import TimeViper
        from timeviper_fast.video import open_video

    with progress_bars(err) as progress, open_video(video, progress=progress) as source:
        for note in source.notes:
            say(err, f"{source.name}: {note}", wrap=True)
        model = TimeViper.from_pretrained(TINY)
        said = answer(model, model.tokenizer, source, request, progress=progress)
        for note in said.notes[len(source.notes) :]:
            say(err, f"{source.name}: {note}", wrap=True)
    say(err, f"Q {request.question}", wrap=True)
    show(said, times=True, as_json=as_json)


def _ask_and_check(made: DemoVideo, directory: Path, as_json: bool) -> int:
    """Ask the questions of the demo's video, and print each answer and the true one.

    Returns:
        The number of wrong answers.
    """
    with importing():
        from timeviper_fast.cli.terminal import err, progress_bars, say
        from timeviper_fast.inference.ask import answer
        from timeviper_fast.timeviper import TimeViper

    with progress_bars(err) as progress:
        video, sentence = _video(made, directory, partial(progress, "video"))
        say(err, sentence, wrap=True)
        model = TimeViper.from_pretrained(TINY)
        say(err, model.note, wrap=True)
        answers = []
        for question in made.questions:
            request = Request(question.text, max_new_tokens=_TOKENS)
            answers.append(answer(model, model.tokenizer, video, request, progress=progress))
    if as_json:
        rows = [
            {"question": q.text, "truth": q.answer, "right": a.text == q.answer, **a.to_dict()}
            for q, a in zip(made.questions, answers)
        ]
        name = str(video) if isinstance(video, Path) else None
        typer.echo(json.dumps({"video": name, "seed": made.seed, "answers": rows}))
    else:
        _print(made, answers)
    return sum(a.text != q.answer for q, a in zip(made.questions, answers))


def _print(made: DemoVideo, answers: Sequence[Answer]) -> None:
    """The table of the answers, and the stops on the way to the last one."""
    from timeviper_fast.cli.terminal import err, out, print_stops, print_table, say

    rows = [
        (q.text, a.text, q.answer, "right" if a.text == q.answer else "wrong")
        for q, a in zip(made.questions, answers)
    ]
    print_table(out, ("question", "answer", "truth", ""), rows)
    say(err, "\nThe stops of the last question:")
    print_stops(err, answers[-1].stops)


def _video(
    made: DemoVideo, directory: Path, progress: Callable[[int, int], None]
) -> tuple[Any, str]:
    """The video as a file, or as an array of frames where PyAV is missing; a sentence about it."""
    from timeviper_fast.video.container import import_av

    length = f"{made.seconds} frames of the synthetic world, one per second"
    try:
        import_av()
    except VideoError as error:
        return (
            made.frames(),
            f"No file is written: {error.fault}. The video is an array: {length}.",
        )
    path = _path(made, directory)
    return made.write(path, progress), f"{path}: {length}."
