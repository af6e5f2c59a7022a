"""Files of a checkpoint: find them, read their JSON, open their weights."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timeviper_fast.embedded.models import embedded_directory
from timeviper_fast.errors import CheckpointError

__all__ = [
    "FLOATS",
    "TOKENIZER_FILES",
    "Entry",
    "PathLike",
    "as_path",
    "has_weights",
    "local_directory",
    "model_json",
    "open_weights",
    "read_json",
    "reason",
    "refuse_pickles",
    "some",
    "stored_names",
    "stored_shapes",
    "weight_files",
]

PathLike = str | os.PathLike[str]

FLOATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
_DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer*")


def as_path(owner: str, name: str, value: Any) -> Path:
    """`value` as a path with `~` expanded.

    Raises:
        CheckpointError: it is of another type, or no file can have this path.
    """
    try:
        path = Path(value).expanduser()
        path.resolve()
        # since Python 3.13 `resolve` ignores a loop of symbolic links; `stat` reports it
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(owner, name, "be a usable path", f"{value!r} ({error})") from error
    return path


def reason(error: Exception) -> str:
    """The first line of another library's error message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def some(items: Sequence[str], limit: int = 6) -> str:
    """The first few items, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def local_directory(path_or_hub_id: PathLike, patterns: Sequence[str] = _DOWNLOADED) -> Path:
    """A local directory, or the download of a Hugging Face hub id (files that match `patterns`).

    The id of the embedded model comes first; the hub is never asked for it.

    Raises:
        CheckpointError: neither a directory nor a repository that can be reached.
    """
    if (embedded := embedded_directory(path_or_hub_id)) is not None:
        return embedded
    path = as_path("checkpoint", "path", path_or_hub_id)
    if path.is_dir() and str(path_or_hub_id):
        return path
    name, rule = str(path_or_hub_id), "be a directory or a Hugging Face hub id (owner/name)"
    if path.exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        raise CheckpointError("checkpoint", "path", rule, repr(name))
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    # the hub's client raises many types of error; each means that the model was not reached
    except Exception as error:
        why = (
            f"no such directory, and the hub was not reached or does not have it ({reason(error)})"
        )
        raise CheckpointError("checkpoint", "path", rule, f"{name!r}: {why}") from None


def model_json(directory: Path) -> dict[str, Any]:
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            "checkpoint", "path", "be a model's directory (with a config.json)", directory
        )
    return read_json(directory / "config.json")


class Entry(NamedTuple):
    """Shape and dtype of one stored tensor; shape is None for other objects."""

    shape: tuple[int, ...] | None
    dtype: str


@contextmanager
def open_weights(path: Path) -> Iterator[tuple[dict[str, Entry], Callable[[str], Tensor]]]:
    """The entries of a weight file, and a function that reads one. Tensors are memory-mapped."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            with path.open("rb") as opened:
                pointer = opened.read(40).startswith(b"version https://git-lfs")
            why = "a pointer of Git LFS; `git lfs pull` fetches the weights" if pointer else error
            raise CheckpointError(
                "load_weights", "file", "be readable safetensors", f"{path} ({why})"
            ) from None
        with file as tensors:
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
            entries = {k: Entry(tuple(s.get_shape()), s.get_dtype()) for k, s in slices.items()}
            # a slice keeps the whole file mapped
            del slices
            yield entries, tensors.get_tensor
    else:
        state = _unpickle(path)
        yield {str(key): _entry(value) for key, value in state.items()}, state.__getitem__


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    # a file of another kind can make the reader raise anything; each means it cannot be read
    except Exception as error:
        found = re.search(r"Unsupported \w+ .*|unsupported \w+ \S+", str(error))
        first = (found[0] if found else str(error)).splitlines()[:1]
        raise CheckpointError(
            "load_weights",
            "file",
            "hold plain tensors that load without running code",
            f"{path} ({type(error).__name__}: {''.join(first)})",
        ) from None
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        held = f"keys {', '.join(map(str, state))[:80]}" if isinstance(state, dict) else type(state)
        raise CheckpointError(
            "load_weights", "file", "hold a flat dictionary of tensors", f"{path} ({held})"
        )
    return state


def _entry(value: Any) -> Entry:
    if not isinstance(value, Tensor):
        return Entry(None, type(value).__name__)
    return Entry(tuple(value.shape), FLOATS.get(value.dtype, str(value.dtype)))


def weight_files(path: PathLike) -> list[Path]:
    """The weight files at `path`: a file itself, or those of a directory, sharded or not.

    Raises:
        CheckpointError: there are none, or the index names files that do not exist.
    """
    path = Path(path)
    if path.is_file() and not path.name.endswith(".index.json"):
        return [path]
    names = ("model.safetensors", "pytorch_model.bin")
    candidates = [path / (name + suffix) for name in names for suffix in (".index.json", "")]
    found = path if path.is_file() else next((c for c in candidates if c.is_file()), None)
    if found is None:
        rule = f"be a weight file, or a directory with {' or '.join(names)} (or their index)"
        raise CheckpointError("load_weights", "path", rule, path)
    if found.suffix != ".json":
        return [found]
    shards = read_json(found).get("weight_map")
    if not (
        isinstance(shards, dict) and shards and all(isinstance(v, str) for v in shards.values())
    ):
        raise CheckpointError("load_weights", "index", "have a weight_map of names to files", found)
    files = [found.parent / name for name in sorted(set(shards.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        rule = f"have all {len(files)} shards of its index beside it"
        raise CheckpointError(
            "load_weights", "path", rule, f"{found.parent} without {some(absent)}"
        )
    return files


def stored_names(directory: Path) -> set[str]:
    """Names of the tensors in a directory's safetensors, from the index or the header; empty if
    neither is there."""
    index, single = (directory / f"model.safetensors{end}" for end in (".index.json", ""))
    if index.is_file():
        names = read_json(index).get("weight_map")
        return set(names) if isinstance(names, dict) else set()
    if not single.is_file():
        return set()
    with open_weights(single) as (entries, _):
        return set(entries)


def stored_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a directory's safetensors, by name; empty if a file is missing."""
    index, single = (directory / f"model.safetensors{end}" for end in (".index.json", ""))
    if not (index.is_file() or single.is_file()):
        return {}
    names = {single.name}
    if index.is_file():
        places = read_json(index).get("weight_map")
        names = set(places.values()) if isinstance(places, dict) else set()
    files = [directory / str(name) for name in sorted(names)]
    if not all(file.is_file() for file in files):
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with open_weights(file) as (entries, _):
            shapes |= {name: entry.shape for name, entry in entries.items() if entry.shape}
    return shapes


def refuse_pickles(path: PathLike) -> None:
    """Raise a CheckpointError unless the weights at `path` are safetensors."""
    for file in weight_files(path):
        if file.suffix != ".safetensors":
            rule = "be safetensors (pickled files of this model are not read)"
            raise CheckpointError("load_weights", "file", rule, file)


def has_weights(directory: Path) -> bool:
    """Whether any weight file lies in the directory, complete or not."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("pytorch_model*.bin"))


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(path.name, "file", "be readable JSON", error) from None
    if not isinstance(content, dict):
        raise CheckpointError(path.name, "file", "hold a JSON object", path)
    return content
