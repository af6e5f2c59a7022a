"""The bytes, FLOPs and floors of one request, from which `plan.py` makes its plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from timeviper_fast.config import TimeViperConfig
from timeviper_fast.errors import fail, is_integer
from timeviper_fast.inference.flow import asking_layer, flow
from timeviper_fast.inference.gpus import Gpu
from timeviper_fast.inference.memory import (
    block_bytes,
    encoder_bytes,
    fork_bytes,
    held_bytes,
    item_bytes,
    logits_bytes,
    question_bytes,
    session_bytes,
    waiting_bytes,
    weights,
)
from timeviper_fast.inference.work import (
    decode_work,
    encoder_flops,
    open_work,
    projector_flops,
    question_work,
)

__all__ = ["CHUNKS", "FRAME_BATCHES", "RESERVE", "Asked", "Needs", "choices", "floors", "work_of"]

CHUNKS = (8192, 4096, 2048, 1024, 512)
FRAME_BATCHES = (256, 128, 64, 32, 16, 8)
# a CUDA context, libraries and fragmentation: an estimate
RESERVE = 800_000_000


@dataclass(frozen=True)
class Asked:
    """The arguments of `plan`, checked."""

    config: TimeViperConfig
    frames: int
    before: int
    text: int
    questions: int
    max_new_tokens: int
    dtype: str
    gpu: Gpu | None
    chunk: int | None
    frame_batch: int | None
    label: int = 0

    def __post_init__(self) -> None:
        item_bytes(self.dtype)
        least = {
            "frames": 1,
            "label": 0,
            "before": 0,
            "text": 1,
            "questions": 1,
            "max_new_tokens": 1,
        }
        for name in ("chunk", "frame_batch"):
            if getattr(self, name) is not None:
                least[name] = 1
        for name, number in least.items():
            value = getattr(self, name)
            if not (is_integer(value) and value >= number):
                fail("plan", name, f"be an integer of {number} or more", value)

    @property
    def labels(self) -> int:
        """Text tokens of all labels of frames; frames that are encoded together share one."""
        return self.label * -(-self.frames // self.config.clip_frames)

    @property
    def front(self) -> int:
        """Text tokens in front of the video and between its frames: they pass the same layers."""
        return self.before + self.labels


def choices(asked: Asked) -> Iterator[tuple[bool, int, int]]:
    """(on_host, chunk, frame_batch), the preferred ones first."""
    chunks = CHUNKS if asked.chunk is None else (asked.chunk,)
    batches = FRAME_BATCHES if asked.frame_batch is None else (asked.frame_batch,)
    return product((False, True), chunks, batches)


class Needs:
    """Bytes of a request, of which only those of `of` depend on what is chosen."""

    def __init__(self, asked: Asked) -> None:
        config, before, frames, dtype = asked.config, asked.front, asked.frames, asked.dtype
        self.asked = asked
        self.session = session_bytes(config, before, frames, dtype)
        self.fork = fork_bytes(config, before, frames, asked.text, asked.max_new_tokens, dtype)
        self.exact = {
            "weights": weights(config).nbytes(dtype),
            "session": sum(self.session.values()),
            "forks": asked.questions * sum(self.fork.values()),
            "logits": logits_bytes(config, asked.questions, dtype),
        }
        self.opened_rows = flow(config, before, frames).rows(0)

    def resident(self, on_host: bool) -> int:
        """Exact bytes on the device while a question is read, and the reserve."""
        return sum(self.exact.values()) - self._away(on_host) + RESERVE

    def _away(self, on_host: bool) -> int:
        return self.session["rows"] + self.session["dropped_kv"] if on_host else 0

    def of(self, chunk: int, batch: int, on_host: bool) -> tuple[int, dict[str, int]]:
        """(bytes at the peak, the bounds) of one choice."""
        config, dtype = self.asked.config, self.asked.dtype
        clip = config.clip_frames
        encoded = min(-(-batch // clip), -(-self.asked.frames // clip)) * clip
        encoder = encoder_bytes(config, encoded, dtype)
        rows = min(chunk, self.opened_rows)
        block, waiting = block_bytes(config, rows, dtype), waiting_bytes(config, rows, dtype)
        given = (self.asked.front, self.asked.frames, self.asked.text, chunk)
        question = question_bytes(config, *given, dtype, on_host)
        if not on_host:
            waiting += held_bytes(config, self.asked.front, self.asked.frames, dtype)
        idle = self.exact["forks"] + self.exact["logits"]
        opening = max(encoder, block) + waiting - idle
        bound = {"encoder": encoder, "block": block, "waiting": waiting, "question": question}
        return self.resident(on_host) + max(opening, question), bound


def work_of(asked: Asked) -> dict[str, dict[str, int]]:
    config, before, frames = asked.config, asked.front, asked.frames
    below, above = question_work(config, before, frames, asked.text)
    step = decode_work(config, before, frames, asked.text)
    return {
        "encoder": {"vision": encoder_flops(config, frames)},
        "projector": {"linear": projector_flops(config, frames)},
        "open": open_work(config, before, frames)._asdict(),
        "question": below.plus(above)._asdict(),
        "step": step._asdict(),
    }


def floors(asked: Asked, needs: Needs) -> dict[str, float]:
    """Seconds by part: FLOPs over peak, or bytes that must move over bandwidth if that is more."""
    config, e, gpu = asked.config, item_bytes(asked.dtype), asked.gpu
    assert gpu is not None
    numbers, asking = weights(config), asking_layer(config)
    vision = e * (numbers.vision + numbers.projector)
    # of experts, at least those of one token are read
    below = e * sum(numbers.active[:asking])
    above = e * (sum(numbers.active[asking:]) + numbers.head)
    session, fork = needs.session, needs.fork
    kv = session["kv"] + session["dropped_kv"]
    flops = {part: sum(work.values()) for part, work in work_of(asked).items()}
    text, upper = question_work(config, asked.front, asked.frames, asked.text)

    def floor(work: float, moved: float) -> float:
        return max(work / gpu.flops, moved / gpu.bandwidth)

    batch = asked.questions
    step_bytes = below + above + session["kv"] + batch * (2 * fork["states"] + fork["upper_kv"])
    return {
        "encoder": floor(flops["encoder"] + flops["projector"], vision),
        "open": floor(flops["open"], below + sum(session.values())),
        "question": floor(text.total, below + kv) + floor(upper.total, above + session["rows"]),
        "step": floor(batch * flops["step"], step_bytes),
    }
