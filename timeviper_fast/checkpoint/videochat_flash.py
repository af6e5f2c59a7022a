"""VideoChat-Flash's names of weights on the vision side: encoder and projector."""

from __future__ import annotations

import re
from collections.abc import Sequence

from timeviper_fast.checkpoint.encoder import encoder_names
from timeviper_fast.checkpoint.mapping import NameMap, Piece, under
from timeviper_fast.config import VisionConfig

__all__ = ["flash_vision_names"]


def flash_vision_names(config: VisionConfig) -> NameMap:
    """Names of encoder and projector in a checkpoint of the whole model; None for other names."""
    parts = {
        "model.vision_tower.vision_tower.": under("vision.", encoder_names(config)),
        "model.mm_projector.": under("projector.", _projector_names),
    }

    def translate(key: str) -> Sequence[Piece] | None:
        for prefix, names in parts.items():
            if key.startswith(prefix):
                return names(key.removeprefix(prefix))
        return None

    return translate


def _projector_names(key: str) -> Sequence[Piece] | None:
    match = re.fullmatch(r"mlp\.(\d+\.(?:weight|bias))", key)
    return (Piece(f"layers.{match[1]}"),) if match else None
