"""The vision encoder that a configuration names."""

from __future__ import annotations

from collections.abc import Callable

from timeviper_fast.config import VisionConfig
from timeviper_fast.model.vision.dinov2 import DINOv2
from timeviper_fast.model.vision.encoder import VisionEncoder
from timeviper_fast.model.vision.internvideo2 import InternVideo2
from timeviper_fast.model.vision.radio import RADIO
from timeviper_fast.model.vision.umt import UMT
from timeviper_fast.model.vision.vit import VisionTransformer

__all__ = ["build_encoder"]

_KINDS: dict[str, Callable[[VisionConfig], VisionEncoder]] = {
    "siglip": VisionTransformer,
    "dinov2": DINOv2,
    "umt": UMT,
    "internvideo2": InternVideo2,
    "radio": RADIO,
}


def build_encoder(config: VisionConfig) -> VisionEncoder:
    """The encoder of `config.kind`."""
    return _KINDS[config.kind](config)
