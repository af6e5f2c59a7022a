"""A stream's file: everything that was pushed, and what of it still waits, as one safetensors file.

Tensors are named as in a session's file (`session_file.py`), and further:

    layers.N.key, layers.N.value, layers.N.conv, layers.N.ssm
    runs.N.passed               numbers of the vision tokens that have passed a run of layers
    runs.N.waiting.rows, .source    rows that wait for a full block in front of it
    stages.N.key, .value, .dropped  what a uniform stage dropped: keys, values, and their numbers
    stages.N.kept               numbers of those that it kept
    stages.N.held.rows, .source     rows that wait for a fate
    stages.N.held.change, .place    of a content stage: their changes, and places in the video
    stages.N.before             the last frame that it compared
    stages.N.waiting.rows, .source  dropped rows that wait for a full block
    rows, source, left, last
    frames.pixels, frames.seconds   frames that wait for their batch
    seconds                     of the frames that were encoded and are left
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.content_stage import ContentStage
from timeviper_fast.inference.encode import Pending
from timeviper_fast.inference.prefix import Prefix
from timeviper_fast.inference.request import Opening
from timeviper_fast.inference.rows import Rows
from timeviper_fast.inference.session_file import check_file, model_texts, refuse
from timeviper_fast.inference.tensor_file import mapped, read_header, target_of, write_tensors
from timeviper_fast.inference.thinning import UniformStage
from timeviper_fast.model.cache import AttentionState
from timeviper_fast.model.mamba_state import MambaState
from timeviper_fast.model.model import TimeViperNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Stored", "read_stream", "write_stream"]

FORMAT, VERSION = "timeviper_fast.stream", 1
_COUNTS = ("length", "vision_tokens", "front", "trailing", "numbered")
_FATES = ("arrived", "settled")

Get = Callable[[str], Tensor | None]


class Stored(NamedTuple):
    """A stream's file, opened.

    Attributes:
        stages, opening: as the stream was opened.
        settings, counts: of the stream, by its own names.
        restore: brings a fresh prefix to the stored state; gives the frames that wait for their
            batch, and the seconds of those that were encoded and are left.
    """

    stages: tuple[CompressionStage, ...]
    opening: Opening
    settings: dict[str, Any]
    counts: dict[str, Any]
    restore: Callable[[Prefix], tuple[Pending, Tensor]]


def write_stream(
    path: str | os.PathLike[str],
    prefix: Prefix,
    pending: Pending,
    seconds: Tensor,
    stages: tuple[CompressionStage, ...],
    told: Mapping[str, Any],
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase,
    *,
    overwrite: bool = False,
) -> None:
    """Write a file; `Stream.save` says what it is. `told` has opening, settings and counts."""
    prefix.cache.expect_in_file()
    target = target_of("save", path, overwrite)
    tensors = _prefix_tensors(prefix) | {"seconds": seconds}
    tensors |= {"frames.pixels": pending.pixels, "frames.seconds": pending.seconds}
    told = {
        **told,
        "stages": [asdict(stage) for stage in stages],
        "prefix": {name: getattr(prefix, name) for name in (*_COUNTS, "forgetful")},
        "fates": [{name: getattr(stage, name) for name in _FATES} for stage in prefix.stages],
    }
    texts = {name: json.dumps(value) for name, value in told.items()}
    about = {"format": FORMAT, "format_version": str(VERSION), **texts}
    parts = {name: [tensor] for name, tensor in tensors.items()}
    write_tensors(target, parts, {**about, **model_texts(model, tokenizer)})


@contextmanager
def read_stream(
    path: str | os.PathLike[str], model: TimeViperNetwork, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Stored]:
    """Open a file; `TimeViper.load_stream` has the details.

    Raises:
        ValueError: another format, version or model, or what the block finds in it is damaged.
        OSError: there is no such file.
    """
    file = Path(path).expanduser()
    header = check_file(file, read_header(file), FORMAT, VERSION, model, tokenizer)
    try:
        names = ("stages", "settings", "opening", "counts", "prefix", "fates")
        told = {name: json.loads(header.texts[name]) for name in names}
        stages = tuple(CompressionStage(**stage) for stage in told["stages"])
        with mapped(file) as tensors, torch.no_grad():

            def get(name: str) -> Tensor | None:
                return tensors.get_tensor(name) if name in header.entries else None

            def restore(prefix: Prefix) -> tuple[Pending, Tensor]:
                _restore(prefix, told, get)
                waiting = (_there(get(f"frames.{name}")) for name in ("pixels", "seconds"))
                return Pending(*waiting), _there(get("seconds"))

            opening = Opening(**told["opening"], stages=stages)
            yield Stored(stages, opening, told["settings"], told["counts"], restore)
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        refuse("load_stream", file, "describe a stream of this model", f"a damaged one ({error})")


def _prefix_tensors(prefix: Prefix) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {"left": prefix.left}
    for i, state in enumerate(prefix.cache.layers):
        if isinstance(state, MambaState):
            tensors |= {f"layers.{i}.conv": state.conv, f"layers.{i}.ssm": state.ssm}
        elif isinstance(state, AttentionState):
            key, value = state.written
            tensors |= {f"layers.{i}.key": key, f"layers.{i}.value": value}
    for i, (grid, passed) in enumerate(zip(prefix.grids, prefix.passed)):
        tensors[f"runs.{i}.passed"] = _joined(passed)
        tensors |= _named(f"runs.{i}.waiting", grid.pending)
    for i, stage in enumerate(prefix.stages):
        tensors[f"stages.{i}.kept"] = _joined(stage.kept)
        if isinstance(stage, ContentStage):
            tensors |= {f"stages.{i}.{name}": tensor for name, tensor in stage.state.items()}
            continue
        tensors |= _named(f"stages.{i}.held", [] if stage.held is None else [stage.held])
        tensors |= _named(f"stages.{i}.waiting", stage.grid.pending)
        if stage.dropped is not None:
            key, value = stage.dropped.written
            tensors |= {f"stages.{i}.key": key, f"stages.{i}.value": value}
            tensors[f"stages.{i}.dropped"] = _joined(stage.dropped_numbers)
    if prefix.last is not None:
        tensors["last"] = prefix.last
    [rows] = prefix.rows.parts
    return tensors | {"rows": rows.hidden, "source": rows.source}


def _joined(numbers: list[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *numbers])


def _named(name: str, rows: list[Rows]) -> dict[str, Tensor]:
    """Rows under a name; nothing where there are none."""
    if not rows:
        return {}
    joined = Rows.join(rows)
    return {f"{name}.rows": joined.hidden, f"{name}.source": joined.source}


def _restore(prefix: Prefix, told: Mapping[str, Any], get: Get) -> None:
    """Bring a fresh prefix to the state of the stored one."""
    for name, value in told["prefix"].items():
        setattr(prefix, name, value)
    prefix.left, prefix.last = _there(get("left")), _moved(get("last"), prefix)
    for i, state in enumerate(prefix.cache.layers):
        if isinstance(state, MambaState):
            conv, ssm = (
                _there(_moved(get(f"layers.{i}.{part}"), prefix)) for part in ("conv", "ssm")
            )
            # a copy: states are written in place
            prefix.cache.layers[i] = MambaState.of(conv, ssm.clone())
        elif isinstance(state, AttentionState):
            _refill(state, i, "layers", prefix, get)
    for i, grid in enumerate(prefix.grids):
        prefix.passed[i] = [_there(get(f"runs.{i}.passed"))]
        grid.pending = _rows(f"runs.{i}.waiting", prefix, get)
    for i, (stage, fates) in enumerate(zip(prefix.stages, told["fates"])):
        if isinstance(stage, ContentStage):
            _restore_content(stage, i, fates, get)
            continue
        _restore_stage(stage, i, prefix, get)
        stage.arrived, stage.settled = fates["arrived"], fates["settled"]
    if prefix.has_asking:
        hidden, source = _there(_moved(get("rows"), prefix)), _there(get("source"))
        prefix.rows.clear()
        prefix.rows.append(Rows(hidden, source))


def _restore_content(stage: ContentStage, i: int, fates: Mapping[str, int], get: Get) -> None:
    names = [f"held.{name}" for name in ("rows", "source", "change", "place")]
    state = {name: _there(get(f"stages.{i}.{name}")) for name in names}
    before = get(f"stages.{i}.before")
    if before is not None:
        state["before"] = before
    stage.restore(state, _there(get(f"stages.{i}.kept")), fates["arrived"], fates["settled"])


def _restore_stage(stage: UniformStage, i: int, prefix: Prefix, get: Get) -> None:
    stage.kept = [_there(get(f"stages.{i}.kept"))]
    held = _rows(f"stages.{i}.held", prefix, get)
    stage.held = held[0] if held else None
    stage.grid.pending = _rows(f"stages.{i}.waiting", prefix, get)
    if stage.dropped is not None:
        _refill(stage.dropped, i, "stages", prefix, get)
        stage.dropped_numbers = [_there(get(f"stages.{i}.dropped"))]


def _refill(state: AttentionState, i: int, of: str, prefix: Prefix, get: Get) -> None:
    key, value = (_there(_moved(get(f"{of}.{i}.{part}"), prefix)) for part in ("key", "value"))
    # the text in front of the video may have filled a block of the fresh prefix
    state.clear()
    state.append(key, value)


def _rows(name: str, prefix: Prefix, get: Get) -> list[Rows]:
    hidden, source = _moved(get(f"{name}.rows"), prefix), get(f"{name}.source")
    return [] if hidden is None or source is None else [Rows(hidden, source)]


def _moved(tensor: Tensor | None, prefix: Prefix) -> Tensor | None:
    return None if tensor is None else tensor.to(prefix.device)


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise KeyError("a tensor is missing")
    return tensor
