"""Our own safetensors files: tensors that are written piece by piece, and a header to look at.

A file is a JSON header of names, dtypes, shapes and texts, and then the tensors' bytes
(https://huggingface.co/docs/safetensors). Importing this imports no torch, so that a directory of
files is listed at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from timeviper_fast.atomic import whole_file
from timeviper_fast.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Entry", "Header", "mapped", "read_header", "target_of", "write_tensors"]

_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
# bytes that are copied from a GPU and written at a time
_PIECE = 64 << 20
# tensors begin at multiples of this in the file and, as it is mapped page by page, in memory
_ALIGNMENT = 64
_LONGEST_HEADER = 100 << 20


class Entry(NamedTuple):
    """Dtype, by its name in safetensors, and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return _ITEM_BYTES[self.dtype] * prod(self.shape)


class Header(NamedTuple):
    """What a file says about itself: its texts, and the tensors that it holds."""

    texts: dict[str, str]
    entries: dict[str, Entry]


def target_of(owner: str, path: str | os.PathLike[str], overwrite: bool) -> Path:
    """The path of a file to write.

    Raises:
        ArgumentError: it is a directory, or a file although `overwrite` is False.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ArgumentError(owner, "path", "be the name of a file", repr(path))
    if not isinstance(overwrite, bool):
        raise ArgumentError(owner, "overwrite", "be True or False", repr(overwrite))
    target = Path(path).expanduser()
    if target.is_dir():
        raise ArgumentError(owner, "path", "be the name of a file", f"the directory {target}")
    if os.path.lexists(target) and not overwrite:
        remedy = "overwrite=True replaces it"
        raise ArgumentError(owner, "path", "be the name of a new file", target, remedy)
    return target.resolve()


def write_tensors(
    target: Path, tensors: Mapping[str, Sequence[Tensor]], texts: Mapping[str, str]
) -> None:
    """Write a file completely or not at all.

    Args:
        tensors: by name, the parts of each, joined along their second dimension, of which the first
            is 1; or one part of any shape. They are written from where they lie: on the CPU without
            a copy, else through a piece of 64 MB.
        texts: what the header says besides.

    Raises:
        OSError: the disk is full, or the file cannot be written; it names the file.
    """
    entries = {name: _entry(parts) for name, parts in tensors.items()}

    def place(name: str) -> tuple[bool, int, str]:
        # sizes that keep the alignment of what is behind them come first
        entry = entries[name]
        return entry.nbytes % _ALIGNMENT > 0, -_ITEM_BYTES[entry.dtype], name

    order = sorted(entries, key=place)
    try:
        with whole_file(target) as partial, partial.open("xb") as file:
            file.write(_header(entries, order, texts))
            for name in order:
                for part in tensors[name]:
                    _write(file, part)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def _entry(parts: Sequence[Tensor]) -> Entry:
    names = {"float64": "F64", "int64": "I64", "float32": "F32", "int32": "I32"}
    names |= {"float16": "F16", "bfloat16": "BF16"}
    shape = list(parts[0].shape)
    if len(parts) > 1:
        along = 1 if len(shape) > 1 else 0
        shape[along] = sum(part.shape[along] for part in parts)
    return Entry(names[str(parts[0].dtype).removeprefix("torch.")], tuple(shape))


def _header(entries: Mapping[str, Entry], order: Sequence[str], texts: Mapping[str, str]) -> bytes:
    told: dict[str, Any] = {"__metadata__": dict(texts)}
    end = 0
    for name in order:
        start, end = end, end + entries[name].nbytes
        dtype, shape = entries[name]
        told[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(told, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _write(file: BinaryIO, part: Tensor) -> None:
    import torch

    flat = part.detach().reshape(-1).view(torch.uint8)
    for piece in flat.split(_PIECE):
        file.write(piece.cpu().numpy().data)


def read_header(path: Path) -> Header | None:
    """The header of a safetensors file; None of another file, of a damaged or a truncated one.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        told = file.read(length) if 2 <= length <= _LONGEST_HEADER else b""
        size = os.fstat(file.fileno()).st_size
    try:
        return _parsed(json.loads(told), size - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _parsed(told: dict[str, Any], size: int) -> Header | None:
    """The header, if it describes `size` bytes without a gap."""
    texts = told.pop("__metadata__", {})
    entries = {name: Entry(x["dtype"], tuple(x["shape"])) for name, x in told.items()}
    end = 0
    for start, stop, name in sorted((*x["data_offsets"], name) for name, x in told.items()):
        if start != end or stop - start != entries[name].nbytes:
            return None
        end = stop
    whole = end == size and all(isinstance(text, str) for text in texts.values())
    return Header(texts, entries) if whole else None


@contextmanager
def mapped(path: Path) -> Iterator[Any]:
    """A file opened by safetensors: tensors that `get_tensor` gives are mapped, not copied."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        rule = "be a safetensors file that is whole"
        raise ArgumentError("", "path", rule, f"{path} ({error})") from None
