"""What the entry point of the group `lmms_eval.models` gives."""

from __future__ import annotations

from typing import Any

__all__ = ["manifest"]


def manifest() -> Any:
    """The `ModelManifest` of `timeviper_fast`.

    It has no alias: a task's prompts are looked up by the name given to `--model`, so an alias
    would be asked with the default prompts.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    path = "timeviper_fast.evaluation.lmms.adapter.TimeViperLmms"
    return ModelManifest("timeviper_fast", simple_class_path=path)
