"""The memory that there is: what is chosen by it, refused by it, and said when it ran out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from timeviper_fast.config import TimeViperConfig
from timeviper_fast.errors import ArgumentError
from timeviper_fast.inference.plan import Plan, check_plan, plan
from timeviper_fast.inference.request import Opening
from timeviper_fast.model.model import TimeViperNetwork

__all__ = ["FAULTS", "OutOfMemory", "explained", "fitting_batch", "free_bytes", "planned"]

CHUNK = 8192
# what is said of one video or question, where many are read and the others go on
FAULTS = (ValueError, OSError, NotImplementedError, torch.OutOfMemoryError)
_GB = 1e9


class OutOfMemory(torch.OutOfMemoryError):
    """The memory ran out, and what the plan says of it. Nothing that was there before is lost."""


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a CUDA device that are free or that torch holds unused; None for other devices."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def planned(
    model: TimeViperNetwork,
    opening: Opening,
    frames: int,
    before: int,
    text: int,
    max_new_tokens: int,
) -> tuple[Opening, torch.device]:
    """The opening with its chunk and frame batch, and where the session's rows are kept.

    Args:
        opening: a chunk or frame batch of None is chosen by what fits.
        frames, before, text: of the video, text tokens in front of it, and of the question.

    Raises:
        ValueError: the video and a question about it do not fit the device's memory.
    """
    free = free_bytes(model.device)
    if free is None:
        return replace(opening, chunk=opening.chunk or CHUNK), model.device
    made = check_plan(
        model.config,
        frames,
        memory_bytes=free,
        before=before,
        text=text,
        max_new_tokens=max_new_tokens,
        dtype=_name(model),
        chunk=opening.chunk,
        frame_batch=opening.frame_batch,
        policy=opening.policy,
    )
    chosen = replace(opening, chunk=made.chunk, frame_batch=made.frame_batch)
    return chosen, torch.device("cpu") if made.on_host else model.device


def fitting_batch(
    model: TimeViperNetwork,
    frames: int,
    before: int,
    text: int,
    max_new_tokens: int,
    *,
    held: int,
    chunk: int | None,
    most: int,
) -> int:
    """How many questions, at most `most`, fit together beside a session of `held` bytes.

    Raises:
        ValueError: not even one does.
    """
    free = free_bytes(model.device)
    questions = most
    while free is not None:
        try:
            check_plan(
                model.config,
                frames,
                memory_bytes=free + held,
                before=before,
                text=text,
                questions=questions,
                max_new_tokens=max_new_tokens,
                dtype=_name(model),
                chunk=chunk,
                frame_batch=1,
            )
        except ArgumentError:
            if questions == 1:
                raise
            questions = questions // 2
            continue
        break
    return questions


@contextmanager
def explained(
    model: TimeViperNetwork, what: str, frames: int, questions: int, max_new_tokens: int
) -> Iterator[None]:
    """Say what the plan needs if memory runs out inside the block.

    Raises:
        OutOfMemory: in place of torch's error.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        short = isinstance(error, torch.OutOfMemoryError) or "can't allocate" in str(error)
        if not short or isinstance(error, OutOfMemory):
            raise
        raise OutOfMemory(
            _sentence(model.config, _name(model), what, frames, questions, max_new_tokens)
        ) from error


def _sentence(
    config: TimeViperConfig, dtype: str, what: str, frames: int, questions: int, new: int
) -> str:
    asked = f"{frames} frames and {questions} questions with {new} new tokens"
    sizes = {"text": 1, "questions": questions, "max_new_tokens": new}
    try:
        made: Plan = plan(config, max(frames, 1), dtype=dtype, chunk=CHUNK, **sizes)  # type: ignore[arg-type]
    except ArgumentError as error:
        # so near the window that the plan's own text does not fit
        return f"out of memory while {what}: {asked}; {error}"
    parts = [f"{name} {size / _GB:.2f}" for name, size in made.exact.items()]
    parts += [f"{name} at most {size / _GB:.2f}" for name, size in made.bound.items()]
    return (
        f"out of memory while {what}: {asked} need up to "
        f"{made.need / _GB:.2f} GB ({', '.join(parts)}, reserve "
        f"{made.reserve / _GB:.1f}); a smaller chunk or frame_batch, fewer frames or fewer "
        "questions at a time need less, and `timeviper-fast plan` shows how much"
    )


def _name(model: TimeViperNetwork) -> str:
    return str(model.dtype).removeprefix("torch.")
