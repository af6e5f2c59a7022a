"""Questions and answers about hour-long videos: a lean TimeViper on tvkernels' ops.

A name is imported when it is first asked for, so the command line is there before torch is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timeviper_fast.ask import Answer
    from timeviper_fast.config import (
        BackboneConfig,
        CompressionStage,
        ProjectorConfig,
        TimeViperConfig,
        VisionConfig,
    )
    from timeviper_fast.generate import Sampling
    from timeviper_fast.model import Generation, TimeViper
    from timeviper_fast.presets import preset

__all__ = [
    "Answer",
    "BackboneConfig",
    "CompressionStage",
    "Generation",
    "ProjectorConfig",
    "Sampling",
    "TimeViper",
    "TimeViperConfig",
    "VisionConfig",
    "preset",
]

_HOMES = {
    "Answer": "ask",
    "Generation": "model",
    "Sampling": "generate",
    "TimeViper": "model",
    "preset": "presets",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'config')}"), name)
