"""A file that takes an answer: checked before the work, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from timeviper_fast.atomic import whole_file
from timeviper_fast.errors import ArgumentError

__all__ = ["writable", "write"]


def writable(path: str, inputs: Iterable[str] = (), argument: str = "output") -> Path:
    """The real path of a file that can be written, before hours of work go into its content.

    Missing directories above it are made when it is written, and an existing file is replaced.

    Args:
        path: of the file.
        inputs: files and directories that the command reads; none of them is written to.
        argument: that named the file.

    Raises:
        ArgumentError: of `argument`: it is a directory, is or lies in an input, or cannot be
            written.
    """
    target = Path(path).expanduser()
    # /dev/stdout is a link to whatever the shell has opened: that must be appended to
    target = target.absolute() if _is_device(target) else target.resolve()
    if target.is_dir() or path.endswith(("/", os.sep)):
        raise ArgumentError("", argument, "be a file", f"the directory {path}")
    for given in map(Path, inputs):
        read = given.expanduser().resolve()
        if read.exists() and read in (target, *target.parents):
            raise ArgumentError("", argument, f"be another file than {given}, which is read", path)
    above = next(folder for folder in target.parents if folder.exists())
    try:
        if target.is_file():
            target.open("ab").close()
        if not _is_device(target):
            # some file systems refuse writers whose permission bits look fine
            tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        rule = f"be a file that can be written ({error.strerror})"
        raise ArgumentError("", argument, rule, path) from error
    return target


def write(target: Path, text: str) -> None:
    """Write a line to the file `writable` returned; a device or a pipe is written to directly."""
    if _is_device(target):
        with target.open("a", encoding="utf-8") as device:
            device.write(f"{text}\n")
        return
    with whole_file(target) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")


def _is_device(path: Path) -> bool:
    """Whether it is a device or a pipe, which cannot be replaced."""
    return Path("/dev") in path.parents or (path.exists() and not path.is_file())
