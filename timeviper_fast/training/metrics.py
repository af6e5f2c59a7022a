"""A run's metrics: one JSON object per line in metrics.jsonl, and TensorBoard on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from timeviper_fast.dataset.files import write_whole
from timeviper_fast.errors import ArgumentError

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends lines; each names its phase and step.

    Args:
        folder: the run's folder.
        tensorboard: whether to write event files into `folder/tensorboard`, too.

    Raises:
        ValueError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self._events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                rule = "be False without the package (pip install 'timeviper-fast[train]')"
                raise ArgumentError("train", "tensorboard", rule, True) from None
            self._events = SummaryWriter(str(folder / "tensorboard"))

    def forget_behind(self, phase: str, step: int) -> None:
        """Drop the lines of `phase` after `step`: a continued run writes them again."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not _is_behind(line, phase, step)]
        write_whole(self.path, "".join(f"{line}\n" for line in kept).encode())

    def write(self, phase: str, step: int, kind: str, values: dict[str, float]) -> None:
        """Append a line; `kind` is "train" or "evaluation"."""
        line = {"phase": phase, "step": step, "kind": kind, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{phase}/{kind}/{name}", value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _is_behind(line: str, phase: str, step: int) -> bool:
    """Whether a line is of a later step, or was cut off."""
    try:
        values = json.loads(line)
    except ValueError:
        return True
    return values["phase"] == phase and values["step"] > step
