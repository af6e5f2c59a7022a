"""Files of weights into a module: compare everything first, then read shard by shard.

Reading goes in two passes. The first opens only headers and compares every name, shape and dtype
with the model, so that a checkpoint that does not fit ends in one error before a byte of weights is
read. The second copies each tensor straight to its device and dtype; with a module built on the
meta device, host memory peaks at the model plus the one file that is open.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from timeviper_fast.errors import CheckpointError
from timeviper_fast.names import NameMap, Piece, own_names

__all__ = [
    "PathLike",
    "Progress",
    "Source",
    "as_path",
    "fail",
    "has_weights",
    "load_weights",
    "read_json",
    "some",
    "tied_names",
    "weight_files",
]

_FLOATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]
M = TypeVar("M", bound=nn.Module)


def fail(owner: str, name: str, rule: str, value: Any) -> NoReturn:
    """Raise the CheckpointError `owner: name must <rule>, got <value>`."""
    raise CheckpointError(f"{owner}: {name} must {rule}, got {value}")


def as_path(owner: str, name: str, value: Any) -> Path:
    """`value` as a path, `~` expanded, once it could be one.

    Raises:
        CheckpointError: it is of another kind, or nothing can lie there.
    """
    try:
        path = Path(value).expanduser()
        path.resolve()
        # since Python 3.13 `resolve` ignores a loop of symbolic links; `stat` reports it
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        fail(owner, name, "be a usable path", f"{value!r} ({error})")
    return path


class Entry(NamedTuple):
    """What a file says about one tensor before it is read; shape is None for other objects."""

    shape: tuple[int, ...] | None
    dtype: str


@contextmanager
def _open(path: Path) -> Iterator[tuple[dict[str, Entry], Callable[[str], Tensor]]]:
    """The entries of a weight file, and how to read one of them. Tensors are memory-mapped."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise CheckpointError(
                f"load_weights: file must be readable safetensors, got {path} ({error})"
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
    # whatever a foreign file makes the reader raise means the same: it is not read
    except Exception as error:
        found = re.search(r"Unsupported \w+ .*|unsupported \w+ \S+", str(error))
        reason = (found[0] if found else str(error)).splitlines()[:1]
        raise CheckpointError(
            f"load_weights: file must hold plain tensors that load without running code, "
            f"got {path} ({type(error).__name__}: {''.join(reason)})"
        ) from None
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        held = f"keys {', '.join(map(str, state))[:80]}" if isinstance(state, dict) else type(state)
        fail("load_weights", "file", "hold a flat dictionary of tensors", f"{path} ({held})")
    return state


def _entry(value: Any) -> Entry:
    if not isinstance(value, Tensor):
        return Entry(None, type(value).__name__)
    return Entry(tuple(value.shape), _FLOATS.get(value.dtype, str(value.dtype)))


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
        fail("load_weights", "path", rule, path)
    if found.suffix != ".json":
        return [found]
    shards = read_json(found).get("weight_map")
    if not (
        isinstance(shards, dict) and shards and all(isinstance(v, str) for v in shards.values())
    ):
        fail("load_weights", "index", "have a weight_map of names to files", found)
    files = [found.parent / name for name in sorted(set(shards.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        rule = f"have all {len(files)} shards of its index beside it"
        fail("load_weights", "path", rule, f"{found.parent} without {some(absent)}")
    return files


def has_weights(directory: Path) -> bool:
    """Whether any weight file lies in the directory, complete or not."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("pytorch_model*.bin"))


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: file must be readable JSON, got {error}") from None
    if not isinstance(content, dict):
        fail(path.name, "file", "hold a JSON object", path)
    return content


@dataclass(frozen=True)
class Source:
    """Weights somewhere (a file or a directory) and how their names translate to the module's."""

    path: PathLike
    names: NameMap = own_names


# where one part of a parameter is stored: file, name there, how it translates
_Stored = tuple[Path, str, Piece]


@dataclass
class _Plan:
    """Which stored tensor fills which part of which parameter, and all that does not fit."""

    shapes: dict[str, tuple[int, ...]]
    # a parameter under its second name -> under its first (tied embeddings)
    aliases: dict[str, str]
    reads: dict[str, dict[int, _Stored]] = field(default_factory=dict)
    # what is stored under a second name although the first is stored too
    twins: dict[str, _Stored] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)

    def add(self, source: Source) -> None:
        """Later sources replace what earlier ones had for the same parameter."""
        fresh: dict[str, dict[int, _Stored]] = defaultdict(dict)
        second: dict[str, _Stored] = {}
        misfits: dict[str, str] = {}
        for path, key, entry in _entries(source):
            self.stored.append(key)
            pieces = source.names(key)
            if pieces is None or any(piece.name not in self.shapes for piece in pieces):
                self.unexpected.append(key)
                continue
            for piece in pieces:
                part = piece.put[0] if piece.put else 0
                misfits |= self._misfit(key, entry, piece)
                if piece.name in self.aliases:
                    second[piece.name] = (path, key, piece)
                    continue
                twin = fresh[piece.name].setdefault(part, (path, key, piece))[1]
                if twin != key:
                    misfits[piece.name] = f"{key} stored twice (also as {twin})"
        for name in fresh:
            self.misfits.pop(name, None)
        self.misfits |= misfits
        for alias, stored in second.items():
            if self.aliases[alias] in fresh:
                self.twins[alias] = stored
            else:
                fresh[self.aliases[alias]] = {0: stored}
        self.reads |= fresh

    def _misfit(self, key: str, entry: Entry, piece: Piece) -> dict[str, str]:
        """{parameter: what is wrong with the stored tensor}, empty if it fits."""
        have, want = entry.shape, self.shapes[piece.name]
        if have is None or entry.dtype not in _FLOATS.values():
            return {piece.name: f"{key} of type {entry.dtype} instead of floats"}
        if piece.put:
            want = (want[0] // piece.put[1], *want[1:])
        if piece.take:
            want = (piece.take[1], *want)
        # a leading dimension of one may be left out
        fits = have == want or (1, *have) == want
        return {} if fits else {piece.name: f"{key} {have} instead of {want}"}

    def problems(self) -> str:
        """All that does not fit in one line, nothing left out; empty if everything does."""
        names = [name for name in self.shapes if name not in self.aliases]
        lacks = {name: lack for name in names if (lack := self._lack(name))}
        strangers = {key: key for key in self.unexpected}
        found = (
            ("missing", len(lacks), _whole_parts(lacks, names)),
            ("unexpected", len(self.unexpected), _whole_parts(strangers, self.stored)),
            ("of another shape or type", len(self.misfits), list(self.misfits.values())),
        )
        return "; ".join(f"{n} {kind}: {', '.join(_alike(lines))}" for kind, n, lines in found if n)

    def _lack(self, name: str) -> str:
        """What to call missing of this parameter; empty if it is filled."""
        stored = self.reads.get(name)
        if not stored:
            return name
        piece = next(iter(stored.values()))[2]
        parts = piece.put[1] if piece.put else 1
        return "" if len(stored) == parts else f"{name} ({len(stored)} of {parts} parts)"


def _entries(source: Source) -> Iterator[tuple[Path, str, Entry]]:
    for path in weight_files(source.path):
        with _open(path) as (entries, _):
            for key, entry in entries.items():
                yield path, key, entry


def _whole_parts(wrong: dict[str, str], names: list[str]) -> list[str]:
    """What is wrong, name by name, but for one line where all names of a part are."""
    total = Counter(prefix for name in names for prefix in _prefixes(name))
    gone = Counter(prefix for name in wrong for prefix in _prefixes(name))
    lines = []
    for name, line in wrong.items():
        whole = next((p for p in _prefixes(name) if gone[p] == total[p] > 1), None)
        lines.append(f"{whole}* (all {total[whole]})" if whole else line)
    return lines


def _alike(lines: list[str]) -> list[str]:
    """The same lines; those that differ in their name's first number alone become one, as
    layers.{0,2}.norm.weight."""
    numbers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in dict.fromkeys(lines):
        match = re.fullmatch(r"((?:\S*?\.)??)(\d+)((?:[. ].*)?)", line)
        head, number, tail = match.groups() if match else (line, "", "")
        numbers[head, tail].append(number)
    return [
        f"{head}{{{','.join(sorted(found, key=int))}}}{tail}"
        if len(found) > 1
        else head + found[0] + tail
        for (head, tail), found in numbers.items()
    ]


def _prefixes(name: str) -> list[str]:
    return [name[: match.end()] for match in re.finditer(r"\.", name)]


def some(items: Sequence[str], limit: int = 6) -> str:
    """The first few items, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def load_weights(
    module: M,
    *sources: Source,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
) -> M:
    """Fill every parameter of `module` from `sources`; later sources win over earlier ones.

    Args:
        module: best built under `torch.device("meta")`; its tensors are replaced, not written.
        sources: together they must hold every parameter, and nothing that no name map ignores.
        device, dtype: where and as what (a float dtype or its name) the weights arrive; None keeps
            the stored dtype.
        progress: called with (tensors read, tensors in all).

    Returns:
        `module`. Tied parameters stay tied; the checkpoint may hold them under any of their names.

    Raises:
        CheckpointError: one error that lists all that is missing, unexpected or does not fit
            (a part that is so as a whole by its prefix). The module is then unchanged.
    """
    dtype = None if dtype is None else _float_dtype(dtype)
    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    plan = _Plan(shapes, tied_names(module))
    for source in sources:
        plan.add(source)
    problems = plan.problems()
    if problems:
        where = " + ".join(str(source.path) for source in sources)
        fail("load_weights", where, "hold exactly the weights of this model", problems)
    state = _read(plan, torch.device(device), dtype, progress)
    _check_twins(plan, state)
    for alias, name in plan.aliases.items():
        state[alias] = state[name]
    module.load_state_dict(state, assign=True)
    for alias, name in plan.aliases.items():
        owner, _, leaf = alias.rpartition(".")
        setattr(module.get_submodule(owner), leaf, module.get_parameter(name))
    assert not any(b.is_meta for b in module.buffers()), "a buffer that no checkpoint holds"
    return module


def _float_dtype(dtype: torch.dtype | str) -> torch.dtype:
    by_name = {str(known).removeprefix("torch."): known for known in _FLOATS}
    found = by_name.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found not in list(_FLOATS):
        fail("load_weights", "dtype", f"be one of {', '.join(by_name)}", repr(dtype))
    return found


def tied_names(module: nn.Module) -> dict[str, str]:
    """{second name: first name} of parameters that a module holds under several names."""
    first: dict[nn.Parameter, str] = {}
    aliases = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(parameter, name) != name:
            aliases[name] = first[parameter]
    return aliases


def _read(
    plan: _Plan, device: torch.device, dtype: torch.dtype | None, progress: Progress | None
) -> dict[str, Tensor]:
    by_file: dict[Path, list[tuple[str, str, Piece]]] = defaultdict(list)
    for name, parts in plan.reads.items():
        for path, key, piece in parts.values():
            by_file[path].append((name, key, piece))
    state: dict[str, Tensor] = {}
    done, total = 0, sum(map(len, by_file.values()))
    for path, wanted in by_file.items():
        with _open(path) as (_, read):
            for name, key, piece in wanted:
                _place(state, name, plan.shapes[name], read(key), piece, device, dtype)
                done += 1
                if progress is not None:
                    progress(done, total)
    return state


def _check_twins(plan: _Plan, state: dict[str, Tensor]) -> None:
    for alias, (path, key, _) in plan.twins.items():
        name = plan.aliases[alias]
        with _open(path) as (_, read):
            if not torch.equal(state[name], read(key).to(state[name])):
                rule = f"equal {name}, with which this model ties it"
                fail("load_weights", key, rule, f"other values in {path}")


def _place(
    state: dict[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    stored: Tensor,
    piece: Piece,
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    if name not in state:
        state[name] = torch.empty(shape, dtype=dtype or stored.dtype, device=device)
    target = state[name]
    if piece.take:
        stored = stored[piece.take[0]]
    if piece.put:
        target = target.chunk(piece.put[1])[piece.put[0]]
    # a copy, never a view: a mapped file may change or vanish under the model
    target.copy_(stored.reshape(target.shape))
