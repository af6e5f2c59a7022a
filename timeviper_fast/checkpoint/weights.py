"""Files of weights into a module: compare everything first, then read shard by shard.

Reading goes in two passes. The first opens only headers and compares every name, shape and dtype
with the model: a checkpoint that does not fit gives one error before any weights are read. The
second copies each tensor straight to its device and dtype; with a module built on the meta device,
host memory peaks at the model plus the one file that is open.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from timeviper_fast.checkpoint.files import (
    FLOATS,
    Entry,
    PathLike,
    open_weights,
    weight_files,
)
from timeviper_fast.checkpoint.mapping import NameMap, Piece, own_names
from timeviper_fast.errors import CheckpointError

__all__ = ["Progress", "Source", "load_weights", "tied_names"]


Progress = Callable[[int, int], None]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Source:
    """A file or directory of weights, and the map from its names to the module's."""

    path: PathLike
    names: NameMap = own_names


# where one part of a parameter is stored: file, stored name, translation
_Stored = tuple[Path, str, Piece]


@dataclass
class _Plan:
    """Which stored tensor fills which part of which parameter, and every mismatch."""

    shapes: dict[str, tuple[int, ...]]
    # second name of a tied parameter -> its first name
    aliases: dict[str, str]
    reads: dict[str, dict[int, _Stored]] = field(default_factory=dict)
    # tensors stored under a second name although the first is stored too
    twins: dict[str, _Stored] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)
    # computed where no file holds them
    tables: dict[str, Tensor] = field(default_factory=dict)

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
        if have is None or entry.dtype not in FLOATS.values():
            return {piece.name: f"{key} of type {entry.dtype} instead of floats"}
        if piece.put:
            want = (want[0] // piece.put[1], *want[1:])
        if piece.take:
            want = (piece.take[1], *want)
        # a leading dimension of one may be left out
        fits = have == want or (1, *have) == want
        return {} if fits else {piece.name: f"{key} {have} instead of {want}"}

    def problems(self) -> str:
        """Every mismatch in one line; empty if everything fits."""
        names = [n for n in self.shapes if n not in self.aliases and n not in self.tables]
        lacks = {name: lack for name in names if (lack := self._lack(name))}
        strangers = {key: key for key in self.unexpected}
        found = (
            ("missing", len(lacks), _whole_parts(lacks, names)),
            ("unexpected", len(self.unexpected), _whole_parts(strangers, self.stored)),
            ("of another shape or type", len(self.misfits), list(self.misfits.values())),
        )
        return "; ".join(f"{n} {kind}: {', '.join(_alike(lines))}" for kind, n, lines in found if n)

    def _lack(self, name: str) -> str:
        """How to report this parameter as missing; empty if it is filled."""
        stored = self.reads.get(name)
        if not stored:
            return name
        piece = next(iter(stored.values()))[2]
        parts = piece.put[1] if piece.put else 1
        return "" if len(stored) == parts else f"{name} ({len(stored)} of {parts} parts)"


def _entries(source: Source) -> Iterator[tuple[Path, str, Entry]]:
    for path in weight_files(source.path):
        with open_weights(path) as (entries, _):
            for key, entry in entries.items():
                yield path, key, entry


def _whole_parts(wrong: dict[str, str], names: list[str]) -> list[str]:
    """One line per wrong name; a single line for a part whose names are all wrong."""
    total = Counter(prefix for name in names for prefix in _prefixes(name))
    gone = Counter(prefix for name in wrong for prefix in _prefixes(name))
    lines = []
    for name, line in wrong.items():
        whole = next((p for p in _prefixes(name) if gone[p] == total[p] > 1), None)
        lines.append(f"{whole}* (all {total[whole]})" if whole else line)
    return lines


def _alike(lines: list[str]) -> list[str]:
    """Merge lines whose names differ only in the first number, as layers.{0,2}.norm.weight."""
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
        device: where the weights go.
        dtype: a float dtype or its name; None keeps the stored dtype. Buffers have the module's.
        progress: called with (tensors read, tensors in all).

    Returns:
        `module`. Tied parameters stay tied; the checkpoint may hold them under any of their names.

    Raises:
        CheckpointError: one error that lists everything missing, unexpected or of another shape
            (by its prefix if that holds for a whole part). The module is then unchanged.
    """
    dtype = None if dtype is None else _float_dtype(dtype)
    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    plan = _Plan(shapes, tied_names(module))
    for source in sources:
        plan.add(source)
    plan.tables = _tables(module, plan.reads)
    problems = plan.problems()
    if problems:
        where = " + ".join(str(source.path) for source in sources)
        raise CheckpointError(
            "load_weights", where, "hold exactly the weights of this model", problems
        )
    # a buffer has the dtype in which it is computed with
    buffers = {name: buffer.dtype for name, buffer in module.named_buffers()}
    state = _read(plan, torch.device(device), dtype, buffers, progress)
    state |= {name: table.to(device, dtype) for name, table in plan.tables.items()}
    _check_twins(plan, state)
    for alias, name in plan.aliases.items():
        state[alias] = state[name]
    module.load_state_dict(state, assign=True)
    for alias, name in plan.aliases.items():
        owner, _, leaf = alias.rpartition(".")
        setattr(module.get_submodule(owner), leaf, module.get_parameter(name))
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            assert not buffer.is_meta, "a buffer that no checkpoint holds"
            # computed when the module was built, such as a table of positions
            setattr(part, name, buffer.to(device))
    return module


def _tables(module: nn.Module, stored: Container[str]) -> dict[str, Tensor]:
    """{name: values} of the parameters that no file holds and a part of the module computes."""
    made: dict[str, Tensor] = {}
    for prefix, part in module.named_modules():
        tables: Callable[[], dict[str, Tensor]] = getattr(part, "tables", dict)
        made |= {f"{prefix}.{name}".lstrip("."): table for name, table in tables().items()}
    return {name: table for name, table in made.items() if name not in stored}


def _float_dtype(dtype: torch.dtype | str) -> torch.dtype:
    by_name = {str(known).removeprefix("torch."): known for known in FLOATS}
    found = by_name.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found not in list(FLOATS):
        raise CheckpointError(
            "load_weights", "dtype", f"be one of {', '.join(by_name)}", repr(dtype)
        )
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
    plan: _Plan,
    device: torch.device,
    dtype: torch.dtype | None,
    buffers: dict[str, torch.dtype],
    progress: Progress | None,
) -> dict[str, Tensor]:
    by_file: dict[Path, list[tuple[str, str, Piece]]] = defaultdict(list)
    for name, parts in plan.reads.items():
        for path, key, piece in parts.values():
            by_file[path].append((name, key, piece))
    state: dict[str, Tensor] = {}
    done, total = 0, sum(map(len, by_file.values()))
    for path, wanted in by_file.items():
        with open_weights(path) as (_, read):
            for name, key, piece in wanted:
                own = buffers.get(name, dtype)
                _place(state, name, plan.shapes[name], read(key), piece, device, own)
                done += 1
                if progress is not None:
                    progress(done, total)
    return state


def _check_twins(plan: _Plan, state: dict[str, Tensor]) -> None:
    for alias, (path, key, _) in plan.twins.items():
        name = plan.aliases[alias]
        with open_weights(path) as (_, read):
            if not torch.equal(state[name], read(key).to(state[name])):
                rule = f"equal {name}, with which this model ties it"
                raise CheckpointError("load_weights", key, rule, f"other values in {path}")


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
    # copy, never view: a memory-mapped file may change or vanish while the model is in use
    target.copy_(stored.reshape(target.shape))
