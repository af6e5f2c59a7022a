"""The options that several commands share."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Literal

import typer

from timeviper_fast.stages import STAGES_FORMS

__all__ = [
    "MODEL_HELP",
    "REMEDY",
    "VIDEO_HELP",
    "BackendName",
    "Chunk",
    "Device",
    "Dtype",
    "DtypeName",
    "FrameBatch",
    "Json",
    "Quiet",
    "Salvage",
    "Sample",
    "StagesText",
    "named",
    "options",
    "version",
]

VIDEO_HELP = "A video file, a directory of images, an animated image, .npz or .npy; - for a pipe."
MODEL_HELP = "A local directory, a Hugging Face Hub id, or timeviper-fast/tiny (in the package)."
REMEDY = "--backend reference (plain PyTorch) or --device cpu runs it"


def named(value: str | None) -> str | None:
    """Refuse an empty path (an unset shell variable): it would mean the current directory."""
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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no notes.")]
Sample = Annotated[str | None, typer.Option("--sample", help="As in ask; default: the model's.")]
StagesText = Annotated[
    str | None,
    typer.Option(help=f"Drop vision tokens: {STAGES_FORMS}; default: the model's stages."),
]
Salvage = Annotated[
    bool, typer.Option("--salvage", help="Use what can be decoded of damaged video.")
]
FrameBatch = Annotated[int | None, typer.Option(help="Frames encoded at a time.")]
Chunk = Annotated[int | None, typer.Option(help="Prompt tokens per pass through the LLM.")]
BackendName = Annotated[
    Literal["reference", "triton"] | None,
    typer.Option(help="Force plain PyTorch or the kernels; default by device."),
]


def version() -> str:
    """The version that is installed; in a source tree that is not, tvkernels' own."""
    try:
        # importing tvkernels imports torch
        return metadata.version("timeviper-fast")
    except metadata.PackageNotFoundError:
        from tvkernels import __version__

        return __version__


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"timeviper-fast {version()}")
        raise typer.Exit


def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where a mistake came from.")] = False,
) -> None:
    """Questions and answers about hour-long videos."""
