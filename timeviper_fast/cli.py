"""The command line: ask, info, convert, doctor, demo.

The answer (or JSON) goes to standard output, progress and tables to standard error. A mistake is
one line on standard error and exit code 2; Ctrl-C is exit code 130; --debug shows tracebacks.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console

from timeviper_fast.checkpoint.config_file import config_to_dict
from timeviper_fast.checkpoint.files import local_directory
from timeviper_fast.checkpoint.load import load_tokenizer, read_config
from timeviper_fast.checkpoint.save import free_target
from timeviper_fast.checkpoint.upstream import load_upstream, upstream_config
from timeviper_fast.demo import QUESTION, tiny_model, write_demo_video
from timeviper_fast.inference.ask import Answer
from timeviper_fast.inference.generate import Sampling
from timeviper_fast.inference.plan import model_facts
from timeviper_fast.inference.request import check_request
from timeviper_fast.presets import PRESETS, preset
from timeviper_fast.terminal import print_stops, print_table, progress_bars, say, speaking
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video import open_video
from tvkernels import BackendUnavailable, __version__, explain, providers, use_backend

app = typer.Typer(
    help="Questions and answers about hour-long videos.",
    add_completion=False,
    pretty_exceptions_enable=False,
    # boxes leave the words no room in a terminal of 80 columns
    rich_markup_mode=None,
)
out, err = Console(), Console(stderr=True)


def _named(value: str | None) -> str | None:
    """An empty path would mean the current directory: a shell variable that was never set."""
    if value is not None and not value.strip():
        raise typer.BadParameter("must not be empty")
    return value


Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; default: CUDA if there is one.")
]
DtypeName = Literal["bfloat16", "float16", "float32"]
Dtype = Annotated[
    DtypeName | None, typer.Option(help="Of the weights; default: bfloat16 on CUDA, else float32.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
BackendName = Annotated[
    Literal["reference", "triton"] | None,
    typer.Option(help="Force plain PyTorch or the kernels; default by device."),
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"timeviper-fast {__version__}")
        raise typer.Exit


VIDEO_HELP = "A video file, a directory of images, an animated image, .npz or .npy."


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print it.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where a mistake came from.")] = False,
) -> None:
    """Questions and answers about hour-long videos."""


@app.command()
def ask(
    video: Annotated[str, typer.Argument(help=VIDEO_HELP, callback=_named)],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: Annotated[
        str, typer.Option(help="A local directory or a Hugging Face Hub id.", callback=_named)
    ],
    sample: Annotated[
        str, typer.Option(help="fps:1, fps:2:max=256, uniform:32, upstream, videochat-flash.")
    ] = "fps:1",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k most likely; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from this much probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes a draw repeatable.")] = None,
    answer_prefix: Annotated[str, typer.Option(help="Words the answer must begin with.")] = "",
    mention_duration: Annotated[
        bool, typer.Option(help="Tell the model the video's length and frame count.")
    ] = False,
    salvage: Annotated[
        bool, typer.Option(help="Use what can be decoded of damaged video.")
    ] = False,
    frame_batch: Annotated[int | None, typer.Option(help="Frames encoded at a time.")] = None,
    chunk: Annotated[int, typer.Option(help="Prompt tokens per pass through the LLM.")] = 8192,
    stream: Annotated[
        bool, typer.Option(help="Print the answer as it is written; no progress bars.")
    ] = False,
    times: Annotated[bool, typer.Option(help="Show the stops with times and sizes.")] = False,
    as_json: Json = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
) -> None:
    """Answer a question about a video."""
    sampling = Sampling(temperature, top_k, top_p, seed)
    request: dict[str, Any] = {
        "policy": sample,
        "max_new_tokens": max_new_tokens,
        "answer_prefix": answer_prefix,
        "frame_batch": frame_batch,
        "chunk": chunk,
    }
    # a mistake here or in the video's name is not worth loading a model for
    check_request(question, **request)
    with (
        use_backend(backend) if backend else nullcontext(),
        progress_bars(err, hidden=stream) as progress,
        open_video(video, on_error="use" if salvage else "raise") as source,
        speaking(out, stream and not as_json) as on_text,
    ):
        loaded = TimeViper.from_pretrained(
            model, device=device, dtype=dtype, progress=partial(progress, "weights")
        )
        answer = loaded.ask(
            source,
            question,
            **request,
            sampling=sampling,
            mention_duration=mention_duration,
            on_text=on_text,
            progress=progress,
        )
    _show(answer, times=times, as_json=as_json, streamed=stream)


@app.command()
def info(
    model: Annotated[
        str, typer.Argument(help=f"A model directory, a Hub id or a preset: {', '.join(PRESETS)}.")
    ],
    as_json: Json = False,
) -> None:
    """What a model is made of, without loading its weights."""
    if model not in PRESETS and "/" not in model and not Path(model or "-").exists():
        kinds = f"a preset ({', '.join(PRESETS)}), a model directory or a Hub id (owner/name)"
        raise ValueError(f"info: MODEL must be {kinds}, got {model!r}")
    config = preset(model) if model in PRESETS else read_config(model)
    facts = model_facts(config)
    if as_json:
        typer.echo(json.dumps({"config": config_to_dict(config), **facts}))
        return
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) else value
        say(out, f"{name.replace('_', ' ')}: {text}", wrap=True)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Which backend runs each op on this machine.

    And who provides the functions that other people's models call.
    """
    rows = explain()
    if as_json:
        typer.echo(json.dumps([row.__dict__ for row in rows]))
        return
    typer.echo(f"timeviper-fast {__version__}")
    # its own word says which build it is, as 2.13.0+cu130; what is installed as need not
    typer.echo(f"torch {torch.__version__}")
    for name in ("triton", "transformers", "av", "pillow"):
        typer.echo(f"{name} {_version(name)}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    typer.echo(f"CUDA device: {gpu}\n")
    header = ("op", "kernel", "tensor on", "backend", "why")
    print_table(out, header, [(r.op, r.kernel, r.device, r.backend, r.reason) for r in rows])
    if any(row.backend == "unavailable" for row in rows):
        typer.echo(f"\nWhat is unavailable: {_REMEDY}.")
    typer.echo()
    who = [(row.library, row.function, row.provider) for row in providers()]
    print_table(out, ("library", "function", "provided by"), who)


@app.command()
def convert(
    output: Annotated[str, typer.Argument(help="Directory to write.", callback=_named)],
    llm: Annotated[
        str,
        typer.Option(help="Hugging Face directory of the LLM, with tokenizer.", callback=_named),
    ],
    vlm: Annotated[
        str | None, typer.Option(help="Upstream's flat state dict of the VLM.", callback=_named)
    ] = None,
    vision_weights: Annotated[
        str | None, typer.Option(help="SigLIP file, timm or HF keys.", callback=_named)
    ] = None,
    vision: Annotated[
        str,
        typer.Option(
            help="Upstream's id of the vision backbone, or a SigLIP directory.", callback=_named
        ),
    ] = "siglip-vit-so400m-384px",
    arch: Annotated[str, typer.Option(help="Projector, as upstream writes it.")] = "tome_mlp-16",
    pdrop: Annotated[
        str | None, typer.Option(help="Stages, as uni_7_0.5-attn_39_0.1; default: the config's.")
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(help="With --pdrop: CrossAttention, or no_merge; default: CrossAttention."),
    ] = None,
    template: Annotated[str, typer.Option(help="nano_base or qwen2.")] = "nano_base",
    dtype: Annotated[DtypeName, typer.Option(help="Of the weights written.")] = "bfloat16",
    overwrite: Annotated[
        bool, typer.Option(help="Replace the model in an existing directory.")
    ] = False,
) -> None:
    """Turn upstream's checkpoints into one directory that `ask` loads."""
    free_target(output, overwrite)  # known before gigabytes are read
    config = upstream_config(
        llm, vision=vision, arch=arch, pdrop=pdrop, merge=merge, template=template
    )
    with progress_bars(err) as progress:
        model = load_upstream(
            TimeViper,
            config,
            llm_dir=llm,
            vision_file=vision_weights,
            vlm_file=vlm,
            dtype=dtype,
            progress=partial(progress, "read"),
        )
        model.tokenizer = load_tokenizer(local_directory(llm))
        model.save_pretrained(output, overwrite=overwrite, progress=partial(progress, "written"))
    say(err, f"wrote {output}")


@app.command()
def demo(
    video: Annotated[
        str | None,
        typer.Argument(help=f"{VIDEO_HELP} Default: one is written.", callback=_named),
    ] = None,
    question: Annotated[str, typer.Option(help="What to ask about it.")] = QUESTION,
    directory: Annotated[
        str, typer.Option(help="Where the video is written.", callback=_named)
    ] = "demo-output",
    seconds: Annotated[int, typer.Option(help="Length of the video written.", min=1)] = 60,
    as_json: Json = False,
) -> None:
    """Answer a question about a real video with a tiny random model."""
    check_request(question)
    path = video or str(Path(directory) / f"demo-{seconds}s.mp4")
    with progress_bars(err) as progress:
        if video is None:
            write_demo_video(path, seconds=seconds, progress=partial(progress, "video"))
    with open_video(path) as source:
        say(
            err,
            f"{path}: {source.duration:.6g} s of video. The model is tiny and its weights are "
            "random (seeded): every part of TimeViper runs, but the answer means nothing.",
            wrap=True,
        )
        with progress_bars(err) as progress:
            answer = tiny_model().ask(
                source, question, max_new_tokens=24, mention_duration=True, progress=progress
            )
    say(err, f"Q {question}", wrap=True)
    _show(answer, times=True, as_json=as_json)


def main() -> None:
    """Run the command line; mistakes are one line and an exit code."""
    if sys.stdout is None:
        say(err, "timeviper-fast: standard output must be open, got it closed; >/dev/null drops it")
        sys.exit(2)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    error: Exception | None = None
    code, line = 0, ""
    try:
        code = app(arguments or ["--help"], standalone_mode=False) or 0
    except KeyboardInterrupt:
        code = 130
    except (
        typer.TyperException,
        torch.OutOfMemoryError,
        ValueError,
        OSError,
        ImportError,
        NotImplementedError,
        BackendUnavailable,
    ) as caught:
        error, code, line = caught, 2, _in_options(caught, arguments)
    if code == 130:
        line = "interrupted"  # typer turns Ctrl-C into this code
    if error is not None and debug:
        raise error
    if line:
        say(err, f"timeviper-fast: {' '.join(line.split())}")
    sys.exit(code)


_REMEDY = "--backend reference (plain PyTorch) or --device cpu runs it"


def _in_options(error: Exception, arguments: Sequence[str]) -> str:
    """What is wrong, in the words of the command line: its options, not the library's arguments."""
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        see = f"; see {context.command_path} --help" if context else ""
        return error.format_message().rstrip(".") + see
    if isinstance(error, torch.OutOfMemoryError):
        remedy = "try a smaller --frame-batch or --chunk, or fewer frames with --sample"
        return f"the device ran out of memory; {remedy}"
    line = str(error) or type(error).__name__
    if isinstance(error, BackendUnavailable):
        return f"{line.partition('; ')[0]}; {_REMEDY}"

    def option(found: re.Match[str]) -> str:
        return f"{names[found[1]]} must" if found[1] in names else found[0]

    commands = typer.main.get_group(app).commands
    params = next((commands[word].params for word in arguments if word in commands), [])
    names = {p.name: p.opts[0] for p in params if p.param_type_name == "option"}
    line = re.sub(r"^(?:\w+: )?(\w+) must", option, line)
    return re.sub(r"^policy\b", "--sample", line).replace("on_error='use'", "--salvage")


def _show(answer: Answer, *, times: bool, as_json: bool, streamed: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(answer.to_dict()))
        return
    if answer.lost_frames:
        lost, seen = answer.lost_frames, len(answer.frame_seconds)
        count = "1 frame of the video is" if lost == 1 else f"{lost} frames of the video are"
        estimate = "an estimate where its end is cut off"
        say(err, f"{count} missing or damaged ({estimate}); {seen} were looked at")
    if not streamed:
        say(out, answer.text)
    if times:
        print_stops(err, answer.stops)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
