"""The names of weights of the vision encoder that a configuration names."""

from __future__ import annotations

from timeviper_fast.checkpoint.dinov2 import dinov2_names
from timeviper_fast.checkpoint.internvideo2 import internvideo2_names
from timeviper_fast.checkpoint.mapping import NameMap
from timeviper_fast.checkpoint.radio import radio_names
from timeviper_fast.checkpoint.siglip import vision_names
from timeviper_fast.checkpoint.umt import umt_names
from timeviper_fast.config import VisionConfig

__all__ = ["encoder_names"]

_KINDS = {
    "siglip": vision_names,
    "dinov2": dinov2_names,
    "umt": umt_names,
    "internvideo2": internvideo2_names,
    "radio": radio_names,
}


def encoder_names(config: VisionConfig) -> NameMap:
    """The map from published names of `config.kind` to those of our encoder."""
    return _KINDS[config.kind](config)
