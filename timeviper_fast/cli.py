"""The command line: ask, info, convert, doctor, demo.

The answer (or JSON) goes to standard output, progress and tables to standard error. A mistake is
one line on standard error and exit code 2; Ctrl-C is exit code 130; --debug shows tracebacks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from timeviper_fast import checkpoint
from timeviper_fast.ask import Answer
from timeviper_fast.config import TimeViperConfig
from timeviper_fast.demo import QUESTION, tiny_model, write_demo_video
from timeviper_fast.generate import Sampling
from timeviper_fast.model import TimeViper
from timeviper_fast.presets import PRESETS, preset
from timeviper_fast.sampling import parse_policy
from timeviper_fast.stops import Stop
from timeviper_fast.video import open_video
from tvkernels import BackendUnavailable, explain, use_backend

app = typer.Typer(
    help="Questions and answers about hour-long videos.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(), Console(stderr=True)

Device = Annotated[str | None, typer.Option(help="cuda, cpu, ...; default: CUDA if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; default by device.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
BackendName = Annotated[
    str | None, typer.Option(help="Force 'reference' (plain PyTorch) or 'triton'.")
]


@app.command()
def ask(
    video: Annotated[str, typer.Argument(help="A file, a directory of images, .npz or .npy.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: Annotated[str, typer.Option(help="A local directory or a Hugging Face Hub id.")],
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
    parse_policy(sample)
    # a mistake in the video's name is not worth loading a model for
    with (
        _backend(backend),
        _progress(hidden=stream) as progress,
        open_video(video, on_error="use" if salvage else "raise") as source,
    ):
        loaded = TimeViper.from_pretrained(
            model, device=device, dtype=_dtype(dtype), progress=partial(progress, "weights")
        )
        answer = loaded.ask(
            source,
            question,
            policy=sample,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            answer_prefix=answer_prefix,
            mention_duration=mention_duration,
            frame_batch=frame_batch,
            chunk=chunk,
            on_text=_print_piece if stream and not as_json else None,
            progress=progress,
        )
    _show(answer, times=times, as_json=as_json, streamed=stream)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A model directory, a Hub id or a preset's name.")],
    as_json: Json = False,
) -> None:
    """What a model is made of, without loading its weights."""
    config = preset(model) if model in PRESETS else checkpoint.read_config(model)
    facts = _facts(config)
    if as_json:
        typer.echo(json.dumps({"config": checkpoint.config_to_dict(config), **facts}))
        return
    table = Table("", "", show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(
            name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)
        )
    out.print(table)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Which backend runs each op on this machine, and why."""
    rows = explain()
    if as_json:
        typer.echo(json.dumps([row.__dict__ for row in rows]))
        return
    versions = Table("package", "version", box=None)
    for name in ("timeviper-fast", "torch", "triton", "transformers", "av", "pillow"):
        versions.add_row(name, _version(name))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions.add_row("CUDA device", gpu)
    table = Table("op", "tensor on", "backend", "why", box=None)
    for row in rows:
        table.add_row(row.room, row.device, row.backend, row.reason)
    out.print(versions, table)


@app.command()
def convert(
    output: Annotated[Path, typer.Argument(help="Directory to write.")],
    llm: Annotated[str, typer.Option(help="Hugging Face directory of the LLM, with tokenizer.")],
    vlm: Annotated[str | None, typer.Option(help="Upstream's flat state dict of the VLM.")] = None,
    vision_weights: Annotated[
        str | None, typer.Option(help="SigLIP file, timm or HF keys.")
    ] = None,
    vision: Annotated[
        str, typer.Option(help="Upstream's id of the vision backbone.")
    ] = "siglip-vit-so400m-384px",
    arch: Annotated[str, typer.Option(help="Projector, as upstream writes it.")] = "tome_mlp-16",
    pdrop: Annotated[
        str | None, typer.Option(help="Stages, as uni_7_0.5-attn_39_0.1; default: the config's.")
    ] = None,
    merge: Annotated[str, typer.Option(help="CrossAttention, or no_merge.")] = "CrossAttention",
    template: Annotated[str, typer.Option(help="nano_base or qwen2.")] = "nano_base",
    dtype: Dtype = "bfloat16",
    overwrite: Annotated[bool, typer.Option(help="Replace an existing directory.")] = False,
) -> None:
    """Turn upstream's checkpoints into one directory that `ask` loads."""
    checkpoint.free_target(output, overwrite)  # known before gigabytes are read
    config = checkpoint.upstream_config(
        llm, vision=vision, arch=arch, pdrop=pdrop, merge=merge, template=template
    )
    with _progress() as progress:
        model = checkpoint.load_upstream(
            TimeViper,
            config,
            llm_dir=llm,
            vision_file=vision_weights,
            vlm_file=vlm,
            dtype=_dtype(dtype),
            progress=partial(progress, "weights"),
        )
    model.tokenizer = checkpoint.load_tokenizer(checkpoint.local_directory(llm))
    model.save_pretrained(output, overwrite=overwrite)
    err.print(f"wrote {output}")


@app.command()
def demo(
    directory: Annotated[Path, typer.Option(help="Where the video is written.")] = Path(
        "demo-output"
    ),
    seconds: Annotated[int, typer.Option(help="Length of the video.")] = 60,
    as_json: Json = False,
) -> None:
    """Write a real H.264 video and answer a question about it with a tiny random model."""
    path = directory / f"demo-{seconds}s.mp4"
    with _progress() as progress:
        write_demo_video(path, seconds=seconds, progress=partial(progress, "video"))
    err.print(
        f"[bold]{path}[/bold]: {seconds} s of H.264 video. The model is tiny and its weights are "
        "random (seeded): every part of TimeViper runs, but the answer means nothing."
    )
    with _progress() as progress:
        answer = tiny_model().ask(
            path, QUESTION, max_new_tokens=24, mention_duration=True, progress=progress
        )
    err.print(f"[bold]Q[/bold] {QUESTION}")
    _show(answer, times=True, as_json=as_json)


def main() -> None:
    """Run the command line; mistakes are one line and an exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    error: Exception | None = None
    code, line = 0, ""
    try:
        code = app(arguments, standalone_mode=False) or 0
    except typer.TyperException as caught:
        error, code, line = caught, 2, caught.format_message()
    except torch.OutOfMemoryError as caught:
        remedy = "try a smaller --frame-batch or --chunk, or fewer frames with --sample"
        error, code, line = caught, 2, f"the device ran out of memory; {remedy}"
    except (ValueError, OSError, ImportError, NotImplementedError, BackendUnavailable) as caught:
        error, code, line = caught, 2, str(caught) or type(caught).__name__
    if code == 130:
        line = "interrupted"  # typer turns Ctrl-C into this code
    if error is not None and debug:
        raise error
    if line:
        line = f"timeviper-fast: {' '.join(line.split())}"
        err.print(line, markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _backend(name: str | None) -> AbstractContextManager[None]:
    return nullcontext() if name is None else use_backend(name)  # type: ignore[arg-type]


def _dtype(name: str | None) -> torch.dtype | None:
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if name is not None and name not in known:
        raise ValueError(f"--dtype must be one of {', '.join(known)}, got {name!r}")
    return None if name is None else known[name]


@contextmanager
def _progress(hidden: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per kind of work, on standard error, silent where that is no terminal."""
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=err, transient=True, disable=hidden or not err.is_terminal
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update


def _print_piece(text: str) -> None:
    out.file.write(text)
    out.file.flush()


def _show(answer: Answer, *, times: bool, as_json: bool, streamed: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(answer.to_dict()))
        return
    if answer.lost_frames:
        err.print(f"{answer.lost_frames} frames could not be decoded and were left out")
    # a pipe gets the text as it is, a terminal gets it wrapped
    out.print("" if streamed else answer.text, markup=False, highlight=False, soft_wrap=True)
    if times:
        err.print(_stops_table(answer.stops))


def _stops_table(stops: Sequence[Stop]) -> Table:
    table = Table("stop", "shape", "tokens", "ms", "peak memory", box=None)
    for stop in stops:
        name = stop.name.replace("prefill: ", "  ")
        row = (name, stop.shape, stop.tokens, f"{stop.milliseconds:,.1f}")
        table.add_row(*row, f"{stop.peak_bytes / 2**20:,.0f} MiB")
    return table


def _facts(config: TimeViperConfig) -> dict[str, Any]:
    """What a person wants to know of a model before loading it."""
    with torch.device("meta"):
        model = TimeViper(config)
    backbone = config.backbone
    parts = {"vision": model.vision, "projector": model.projector, "llm": model.backbone}
    sizes = {f"{n}_parameters": sum(p.numel() for p in m.parameters()) for n, m in parts.items()}
    return {
        **sizes,
        "layers": f"{len(backbone.layers_of('M'))} Mamba-2, {len(backbone.layers_of('*'))} "
        f"attention, {len(backbone.layers_of('-'))} MLP",
        "tokens_per_frame": config.tokens_per_frame,
        "frame_size": config.vision.image_size,
        "window": backbone.max_position_embeddings,
        "stages": "; ".join(
            f"before layer {s.layer}: {s.select}, keep {s.keep:g}"
            + (", transfer" if s.transfer else "")
            for s in config.stages
        )
        or "none",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
