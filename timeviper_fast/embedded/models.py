"""The embedded model by its reserved id.

Wherever a model is named, this text means the files inside the package: the network is never
asked, and a directory of the same name is ignored. `./timeviper-fast/tiny` or an absolute path
names such a directory.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["TINY", "TINY_NOTE", "embedded_directory"]

TINY = "timeviper-fast/tiny"
TINY_NOTE = (
    "timeviper-fast/tiny is a small model that was trained on synthetic frames of 48 pixels: it "
    "reads signs, names the colours of shapes, follows chains of cards and, less well, counts "
    "shapes in such videos. Its answers about other videos mean nothing."
)


def embedded_directory(name: str | os.PathLike[str]) -> Path | None:
    """The folder of the embedded model of this id, or None for every other name."""
    if not isinstance(name, (str, os.PathLike)) or os.fspath(name) != TINY:
        return None
    return Path(__file__).parent / "tiny"
