"""Where a stored tensor goes: maps from the names of a file to the names of our parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from timeviper_fast.config import CompressionStage, VisionConfig

__all__ = ["NameMap", "Piece", "block_names", "own_names", "transv_names", "under"]


class Piece(NamedTuple):
    """Where one stored tensor goes.

    Attributes:
        name: our name of the parameter.
        put: (i, n): it fills the i-th of n equal parts of the parameter's first dimension.
        take: (i, n): only entry i of its first dimension, which has n entries, is taken.
    """

    name: str
    put: tuple[int, int] | None = None
    take: tuple[int, int] | None = None


# Stored name -> where it goes. () means that it is ignored, None that it is unknown.
NameMap = Callable[[str], Sequence[Piece] | None]


def own_names(key: str) -> Sequence[Piece]:
    """Our own format: every tensor goes to the parameter of its name."""
    return (Piece(key),)


def under(prefix: str, names: NameMap) -> NameMap:
    """The same map for a part that lives under `prefix` ("backbone.") in a larger module."""

    def translate(key: str) -> Sequence[Piece] | None:
        pieces = names(key)
        return pieces and tuple(p._replace(name=prefix + p.name) for p in pieces)

    return translate


def block_names(config: VisionConfig, names: Mapping[str, str]) -> NameMap:
    """Names `blocks.N.NAME` of a vision encoder; blocks behind the feature layer are ignored.

    Args:
        config: number of blocks.
        names: {stored name inside a block: our name inside it}.
    """

    def translate(key: str) -> Sequence[Piece] | None:
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
        if match is None or match[2] not in names:
            return None
        if config.num_blocks <= int(match[1]) < config.num_hidden_layers:
            return ()
        return (Piece(f"blocks.{match[1]}.{names[match[2]]}"),)

    return translate


def transv_names(stages: Sequence[CompressionStage]) -> NameMap:
    """Upstream TimeViper's TransV beside the layers of its LLM: `merge_modules.N.*` and `alpha`,
    which holds one number per stage that transfers, in order."""
    transfers = [i for i, stage in enumerate(stages) if stage.transfer]

    def translate(key: str) -> Sequence[Piece] | None:
        if key == "alpha" and stages:
            n = len(transfers)
            return tuple(Piece(f"transv.{s}.alpha", take=(i, n)) for i, s in enumerate(transfers))
        if key.startswith("merge_modules."):
            return (Piece(key.replace("merge_modules.", "transv.", 1)),)
        return None

    return translate
