"""Questions and answers about hour-long videos: a lean TimeViper on tvkernels' ops.

    timeviper.py  TimeViper: load and save a model, ask it, generate
    config/       the model's shape in frozen dataclasses
    presets.py    the published shapes by name
    stages.py     compression stages in the words of users
    layout.py     where vision tokens lie in a sequence, and what reaches each layer
    errors.py     the errors that users see, in one wording
    atomic.py     files that are written whole or not at all
    stops.py      time, tokens and memory of each stop
    demo.py       the demo's video, and questions about it with their answers
    __main__.py   starts the command line; handles SIGTERM and Ctrl-C from the first moment

A name is imported when it is first asked for, so the command line is there before torch is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timeviper_fast.config import (
        BackboneConfig,
        CompressionStage,
        ProjectorConfig,
        TimeViperConfig,
        VisionConfig,
    )
    from timeviper_fast.inference.answer import Answer
    from timeviper_fast.inference.chat import Chat
    from timeviper_fast.inference.prompts import Generation
    from timeviper_fast.inference.request import Sampling
    from timeviper_fast.inference.session import Session
    from timeviper_fast.inference.stream import Stream
    from timeviper_fast.presets import preset
    from timeviper_fast.timeviper import TimeViper

__all__ = [
    "Answer",
    "BackboneConfig",
    "Chat",
    "CompressionStage",
    "Generation",
    "ProjectorConfig",
    "Sampling",
    "Session",
    "Stream",
    "TimeViper",
    "TimeViperConfig",
    "VisionConfig",
    "preset",
]

_HOMES = {
    "Answer": "inference.answer",
    "Chat": "inference.chat",
    "Generation": "inference.prompts",
    "Sampling": "inference.request",
    "Session": "inference.session",
    "Stream": "inference.stream",
    "TimeViper": "timeviper",
    "preset": "presets",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'config')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
