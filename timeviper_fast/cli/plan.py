"""`timeviper-fast plan`: what a video and questions about it need, before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from timeviper_fast.cli.app import VIDEO_HELP, DtypeName, Json, Sample, StagesText, named
from timeviper_fast.cli.inspect import config_of, model_names
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import ArgumentError
from timeviper_fast.inference.gpus import GPUS
from timeviper_fast.stages import parse_stages

if TYPE_CHECKING:
    from timeviper_fast.config import TimeViperConfig
    from timeviper_fast.inference.plan import Plan

__all__ = ["plan"]


def plan(
    video: Annotated[str | None, typer.Argument(help=VIDEO_HELP, callback=named)] = None,
    frames: Annotated[
        int | None, typer.Option(help="Plan for so many frames, without a video.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help=f"A preset, a model directory, a Hub id or {TINY}; no weights are read.",
            callback=named,
            autocompletion=model_names,
        ),
    ] = TINY,
    policy: Sample = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(GPUS)}, or a size as 24GB; default: everything fits.",
            autocompletion=lambda incomplete: [n for n in GPUS if n.startswith(incomplete)],
        ),
    ] = None,
    questions: Annotated[int, typer.Option(help="Questions that are answered together.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    stages: StagesText = None,
    chunk: Annotated[
        int | None, typer.Option(help="Prompt tokens per pass; default: the most that fits.")
    ] = None,
    frame_batch: Annotated[
        int | None, typer.Option(help="Frames encoded at a time; default: the most that fits.")
    ] = None,
    dtype: Annotated[DtypeName, typer.Option(help="Of the weights.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Tokens, FLOPs and bytes of a video and questions about it, computed and not run.

    Only the video's index and the model's config are read. Floors of time come from a GPU's data
    sheet: no run is faster, and a real one is slower.
    """
    if (video is None) == (frames is None):
        given = "neither" if video is None else "both"
        raise ArgumentError("", "VIDEO or --frames", "be given, one of the two", given)
    with importing():
        from timeviper_fast.inference import plan as planner

    config = config_of(model, "model")
    if stages is not None:
        config = replace(config, stages=parse_stages(stages, config))
    count = frames or 0
    if video is not None:
        count, policy, config = _frames_of(video, policy, config)
    made = planner.plan(
        config,
        count,
        questions=questions,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        gpu=gpu,
        chunk=chunk,
        frame_batch=frame_batch,
        policy=policy,
    )
    if as_json:
        typer.echo(json.dumps(made.to_dict()))
    else:
        _show(made, config)


def _frames_of(
    video: str, policy: str | None, config: TimeViperConfig
) -> tuple[int, str, TimeViperConfig]:
    """How many frames a policy chooses of a video, the policy, and the model for frames of that
    size; no frame is decoded."""
    with importing():
        from timeviper_fast.cli.terminal import err, progress_bars
        from timeviper_fast.video import open_video

    with progress_bars(err) as progress, open_video(video, progress=progress) as source:
        chosen = "uniform:1" if source.is_image else policy or config.policy
        return len(source.sample(chosen)), chosen, config.seeing(*source.size)


def _show(made: Plan, config: TimeViperConfig) -> None:
    """Three tables, of tokens, FLOPs with floors and bytes, and what was chosen."""
    with importing():
        from timeviper_fast.cli.terminal import out, print_table, say

    asked = f"{made.frames:,} frames, {made.questions} x {made.text} + {made.max_new_tokens} tokens"
    labels = f" and {made.labels:,} in the frames' labels" * (made.labels > 0)
    say(out, f"{asked} of text{labels}, {made.dtype}\n")
    print_table(out, ("layers", "tokens that enter"), _token_rows(made))
    say(out, "")
    print_table(out, ("work", "TFLOP", "linear", "attention", "floor"), _work_rows(made))
    if made.asking_layer is not None:
        layer = config.backbone.named(made.asking_layer)
        share = f"a question costs {made.question_share:.1%} of opening and asking"
        early = "; the stage stands early, so a session saves little" * (made.question_share > 0.25)
        say(out, f"Questions matter from {layer} on: {share}{early}.", wrap=True)
    if made.floors is not None:
        say(out, f"Floors: {made.source}; no promise, a run is slower.", wrap=True)
    say(out, "")
    print_table(out, ("bytes", "GB", "kind"), _byte_rows(made))
    say(out, "")
    place = "in host memory" if made.on_host else "on the device"
    chosen = f"chunk {made.chunk}, frame batch {made.frame_batch}, the session's rows {place}"
    say(out, chosen, wrap=True)
    if made.memory is not None:
        room = f"{(made.memory - made.need) / 1e9:.2f} GB are left"
        say(out, f"It fits {made.gpu} ({made.memory / 1e9:.2f} GB): {room}.", wrap=True)


def _token_rows(made: Plan) -> list[tuple[str, str]]:
    """Neighbouring layers that as many tokens enter are one row."""
    rows, first = [], 0
    for tokens, layers in groupby(made.tokens):
        last = first + len(list(layers)) - 1
        rows.append((f"{first}" if first == last else f"{first} to {last}", f"{tokens:,}"))
        first = last + 1
    return rows


def _work_rows(made: Plan) -> list[tuple[str, ...]]:
    names = {
        "encoder": "encoder",
        "projector": "projector",
        "open": "LLM, video (once)",
        "question": "LLM, each question",
        "step": "each new token",
    }
    rows = []
    for part, name in names.items():
        work = made.flops[part]
        figures = [f"{number / 1e12:,.3f}" for number in (sum(work.values()), *work.values())]
        known = figures[:3] if "attention" in work else [figures[0], "", ""]
        floor = (made.floors or {}).get(part)
        rows.append((name, *known, "" if floor is None else f"{1000 * floor:,.1f} ms"))
    return rows


def _byte_rows(made: Plan) -> list[tuple[str, ...]]:
    rows = [(name, size, "exact") for name, size in made.exact.items()]
    rows += [(name, size, "at most") for name, size in made.bound.items()]
    rows += [("reserve", made.reserve, "estimate"), ("at the peak", made.need, "at most")]
    return [(name, f"{size / 1e9:.3f}", kind) for name, size, kind in rows]
