"""`timeviper-fast session list`: what lies in a directory of sessions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timeviper_fast.cli.app import Json, named
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.errors import ArgumentError
from timeviper_fast.inference.tensor_file import read_header

if TYPE_CHECKING:
    from timeviper_fast.inference.tensor_file import Header

__all__ = ["app", "format_of", "refuse_opening"]

SUFFIXES = (".session", ".features")
_PREFIX = "timeviper_fast."

app = typer.Typer(help="Files of videos that were read.", rich_markup_mode=None)


@app.callback()
def session() -> None:
    """Files of videos that were read; `index` writes them, `ask` answers from them."""


@app.command("list")
def list_sessions(
    directory: Annotated[str, typer.Argument(help="Where the files lie.", callback=named)],
    as_json: Json = False,
) -> None:
    """List the files of videos in a directory; no model and no tensor is read."""
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise ArgumentError("", "DIRECTORY", "be a directory", directory)
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    told = [one for one in map(_told, paths) if one is not None]
    if as_json:
        typer.echo(json.dumps(told))
        return
    with importing():
        from timeviper_fast.cli.terminal import out, print_table
    header = ("file", "frames", "length", "size", "video", "weights", "state")
    print_table(out, header, [_row(one) for one in told])


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The level of a file of ours, "session" or "features", by its content; where that is damaged,
    by its suffix. None of any other file.

    Raises:
        OSError: the file cannot be read.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        return None
    header = read_header(file)
    written = "" if header is None else header.texts.get("format", "")
    if written.startswith(_PREFIX):
        return written.removeprefix(_PREFIX)
    return file.suffix[1:] if file.suffix in SUFFIXES else None


# options that say how a video is read: which frames, and how
_FRAMES = ("policy", "start", "end", "tiles", "salvage")
_OPENING = {"features": _FRAMES, "session": (*_FRAMES, "stages", "frame_batch", "chunk")}


def refuse_opening(context: typer.Context, video: str, level: str) -> None:
    """A file of a video that was read takes no options of reading it."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if (
            parameter.name in _OPENING.get(level, ())
            and source is not None
            and source.name != "DEFAULT"
        ):
            rule = f"be left out for {video}, a video that was read already ({level})"
            given = context.params[parameter.name]
            raise ArgumentError("", parameter.name, rule, given, "index takes these options")


def _told(path: Path) -> dict[str, Any] | None:
    """What a file says about itself; None of a file of another kind."""
    try:
        level = format_of(path)
        if level is None:
            return None
        about = {"file": str(path), "level": level, "bytes": path.stat().st_size}
        return about | _details(read_header(path))
    except OSError as error:
        return {"file": str(path), "state": error.strerror or "unreadable"}


def _details(header: Header | None) -> dict[str, Any]:
    if header is None:
        return {"state": "damaged"}
    texts = header.texts
    try:
        read = ("before", "config", "opening", "stages", "tokens", "versions", "video")
        told = {name: json.loads(texts[name]) for name in read if name in texts}
        video = {name: told["video"][name] for name in ("name", "size", "duration", "lost_frames")}
        return {
            "state": "whole",
            "frames": header.entries["seconds"].shape[0],
            "dtype": texts["dtype"],
            "fingerprint": texts["fingerprint"],
            **{name: told[name] for name in told if name not in ("config", "video")},
            "policy": json.loads(texts["policy"]),
            "video": video,
        }
    except (ValueError, KeyError, TypeError, IndexError):
        return {"state": "damaged"}


def _row(told: dict[str, Any]) -> tuple[str, ...]:
    name, size = Path(told["file"]).name, f"{told.get('bytes', 0) / 1e6:,.1f} MB"
    if told["state"] != "whole":
        return name, "", "", size, "", "", told["state"]
    video = told["video"]
    minutes, seconds = divmod(round(video["duration"]), 60)
    return (
        name,
        f"{told['frames']:,}",
        f"{minutes // 60}:{minutes % 60:02}:{seconds:02}",
        size,
        Path(video["name"]).name,
        told["fingerprint"][:8],
        told["state"],
    )
