"""Questions and answers about hour-long videos: a lean TimeViper on tvkernels' ops."""

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
