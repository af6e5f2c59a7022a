"""What a video and its questions need, computed before anything is loaded or run.

Exact bytes, upper bounds and the reserve are never mixed, and a floor of time is no promise.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from timeviper_fast.config import ATTENTION, BackboneConfig, CompressionStage, TimeViperConfig
from timeviper_fast.errors import ArgumentError, fail
from timeviper_fast.inference.budget import RESERVE, Asked, Needs, choices, floors, work_of
from timeviper_fast.inference.flow import asking_layer
from timeviper_fast.inference.gpus import Gpu, find_gpu
from timeviper_fast.inference.memory import weights
from timeviper_fast.layout import Segment, VisualSpan, tokens_before_layer
from timeviper_fast.stages import parse_stages
from timeviper_fast.text.template import chat_template
from timeviper_fast.video.sampling import Policy, smaller

__all__ = ["Plan", "check_plan", "most", "plan", "prompt_lengths"]

_GB = 1e9


def prompt_lengths(
    config: BackboneConfig,
    stages: tuple[CompressionStage, ...],
    segment: Segment,
    max_new_tokens: int,
) -> list[int]:
    """Check that prompt and answer fit the model; return the prompt tokens that enter each layer.

    Only attention looks back token by token, so the window counts the tokens that reach the
    attention layers.

    Args:
        config: the backbone's shape.
        stages: where vision tokens are dropped.
        segment: the prompt's length and where its vision tokens lie.
        max_new_tokens: room for the answer.

    Raises:
        ValueError: the prompt is empty or becomes so, or does not fit the window.
    """
    lengths = tokens_before_layer((segment,), stages, config.num_hidden_layers)
    if 0 in lengths:
        rule = f"have a token left at layer {lengths.index(0)}"
        fail("", "the prompt", rule, 0)
    window = config.max_position_embeddings
    longest = max((lengths[layer] for layer in config.layers_of(ATTENTION)), default=0)
    if longest + max_new_tokens > window:
        attended = f"{longest} at its attention layers (of {lengths[0]} in the prompt)"
        raise ArgumentError(
            "",
            "prompt and answer",
            f"fit the model's window of {window} tokens",
            f"{attended} + {max_new_tokens} new",
            "sample fewer frames, allow fewer new tokens or drop more vision tokens earlier",
        )
    return lengths


def most(given: int, need: Callable[[int], object]) -> int:
    """The largest number of 1 to `given` that `need` does not refuse; 0 if there is none."""

    def refuses(number: int) -> bool:
        try:
            need(number)
        except ArgumentError:
            return True
        return False

    return bisect_left(range(1, given + 1), True, key=refuses)


@dataclass(frozen=True)
class Plan:
    """What one video and questions about it need.

    Attributes:
        frames: of the video.
        before, text: text tokens in front of the video, and of each question behind it.
        labels: text tokens of the labels of all frames.
        questions: in flight together.
        max_new_tokens: of each answer.
        dtype: of the model.
        gpu: its name, a memory size, or "" where no memory was named.
        memory: bytes that there are; None: not named.
        chunk: rows per pass through the layers.
        frame_batch: frames encoded at a time.
        on_host: whether the rows and the dropped keys and values of the session lie in host memory.
        asking_layer: the layer from which on a question matters; None: at no layer.
        tokens: prompt tokens that enter each layer.
        flops: of the whole video's "encoder" and "projector", of "open" (the LLM, once), of each
            "question" and of its first decode "step", each by part; FLOPs are 2 per multiply-add.
        exact: bytes of "weights", "session", "forks" (all questions) and "logits".
        session, fork: what those are made of; see `memory.session_bytes` and `memory.fork_bytes`.
        bound: upper bounds in bytes: "encoder" (a batch of frames), "block" (a layer at `chunk`
            rows), "waiting" (rows on their way into blocks) and "question" (while one is read).
        reserve: bytes, an estimate, for the context, libraries and fragmentation.
        need: bytes at the peak, which is while the video is opened or while a question is read.
        floors: seconds that no run can be below, by part; None without a named GPU.
        source: of the GPU's figures.
    """

    frames: int
    before: int
    text: int
    labels: int
    questions: int
    max_new_tokens: int
    dtype: str
    gpu: str
    memory: int | None
    chunk: int
    frame_batch: int
    on_host: bool
    asking_layer: int | None
    tokens: tuple[int, ...]
    flops: dict[str, dict[str, int]]
    exact: dict[str, int]
    session: dict[str, int]
    fork: dict[str, int]
    bound: dict[str, int]
    reserve: int
    need: int
    floors: dict[str, float] | None
    source: str

    @property
    def question_share(self) -> float:
        """FLOPs of a question as a share of those of opening the video and asking it."""
        question, opened = (sum(self.flops[part].values()) for part in ("question", "open"))
        return question / (question + opened)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def plan(
    config: TimeViperConfig,
    frames: int,
    *,
    before: int = 20,
    text: int = 60,
    label: int | None = None,
    questions: int = 1,
    max_new_tokens: int = 256,
    dtype: str = "bfloat16",
    gpu: str | None = None,
    chunk: int | None = None,
    frame_batch: int | None = None,
    policy: str | Policy | None = None,
) -> Plan:
    """Plan a video and questions about it; needs neither weights nor a device.

    The largest chunk and then the largest frame batch that fit are chosen. If none fits, the
    session's rows and dropped keys and values go to host memory. Nothing else is ever changed: a
    remedy that changes answers is named in the error, not taken.

    Args:
        config: of the model.
        frames: of the video.
        before, text: text tokens in front of the video, and of each question.
        label: text tokens of a frame's label; None: an estimate where the chat template labels
            frames, else 0.
        questions: in flight together.
        max_new_tokens: of each answer.
        dtype: of the model, by name.
        gpu: a name of `gpus.GPUS`, or a size as "24GB"; None: memory without end, and no floors.
        chunk, frame_batch: fixed instead of chosen.
        policy: how the frames were chosen; a remedy then names a policy instead of a number.

    Raises:
        ArgumentError: a value breaks its rule, or the request does not fit the model's window or
            the memory; it has the numbers, and remedies that fit.
    """
    found = None if gpu is None else find_gpu(gpu)
    if label is None:
        labels = chat_template(config.template).labels
        label = 0 if labels is None else labels.estimate(config.clip_frames)
    given = (config, frames, before, text, questions, max_new_tokens, dtype, found)
    return _plan_or_refuse(Asked(*given, chunk, frame_batch, label), policy)


def check_plan(
    config: TimeViperConfig,
    frames: int,
    *,
    memory_bytes: int,
    before: int = 20,
    text: int = 60,
    questions: int = 1,
    max_new_tokens: int = 256,
    dtype: str = "bfloat16",
    chunk: int | None = None,
    frame_batch: int | None = None,
    policy: str | Policy | None = None,
) -> Plan:
    """As `plan`, for a model that is loaded already, on a device with `memory_bytes` to spare.

    Args:
        before: text tokens in front of the video, those of its frames' labels included.
        memory_bytes: free besides the weights: what the driver reports free, and what torch has
            reserved and not allocated.

    Raises:
        ArgumentError: as `plan`.
    """
    held = weights(config).nbytes(dtype)
    device = Gpu("the device", max(memory_bytes, 0) + held)
    asked = Asked(
        config, frames, before, text, questions, max_new_tokens, dtype, device, chunk, frame_batch
    )
    return _plan_or_refuse(asked, policy)


def _plan_or_refuse(asked: Asked, policy: str | Policy | None) -> Plan:
    try:
        return _plan(asked)
    except ArgumentError as error:
        if error.argument not in ("prompt and answer", "memory"):
            raise
        refused = error
    what = f"{asked.frames:,} frames" + (f" ({policy})" if isinstance(policy, str) else "")
    argument = "frames" if policy is None else "policy"
    value = f"{what}: {refused.value}"
    remedy = _remedy(asked, policy) or refused.remedy
    raise ArgumentError("plan", argument, refused.rule, value, remedy)


def _plan(asked: Asked) -> Plan:
    """The plan, or an ArgumentError of "prompt and answer" or of "memory" without remedies."""
    config = asked.config
    original = config.visual_tokens(asked.frames)
    length = asked.front + original + asked.text
    each = config.frame_tokens(asked.frames)
    segment = Segment(length, VisualSpan(asked.front, original), frame_tokens=each)
    new = asked.max_new_tokens
    tokens = prompt_lengths(config.backbone, config.stages, segment, new)
    needs = Needs(asked)
    memory = None if asked.gpu is None else asked.gpu.memory
    for on_host, chunk, batch in choices(asked):
        need, bound = needs.of(chunk, batch, on_host)
        if memory is None or need <= memory:
            break
    else:
        assert asked.gpu is not None
        rule = f"fit the memory of {asked.gpu.name} ({memory / _GB:.2f} GB)"  # type: ignore[operator]
        parts = [f"{name} {size / _GB:.2f}" for name, size in needs.exact.items()]
        parts += [f"work at most {(need - needs.resident(on_host)) / _GB:.2f}"]
        value = f"{need / _GB:.2f} GB ({', '.join(parts)}, reserve {RESERVE / _GB:.1f})"
        raise ArgumentError("plan", "memory", rule, value)
    layer = asking_layer(config)
    flops = work_of(asked)
    return Plan(
        asked.frames,
        asked.before,
        asked.text,
        asked.labels,
        asked.questions,
        new,
        asked.dtype,
        gpu="" if asked.gpu is None else asked.gpu.name,
        memory=memory,
        chunk=chunk,
        frame_batch=batch,
        on_host=on_host,
        asking_layer=layer if layer < config.backbone.num_hidden_layers else None,
        tokens=tuple(tokens),
        flops=flops,
        exact=needs.exact,
        session=needs.session,
        fork=needs.fork,
        bound=bound,
        reserve=RESERVE,
        need=need,
        floors=floors(asked, needs) if asked.gpu is not None and asked.gpu.flops else None,
        source="" if asked.gpu is None else asked.gpu.source,
    )


def _remedy(asked: Asked, policy: str | Policy | None) -> str:
    """What fits instead, each tried; "" if nothing does."""

    def fits(**change: Any) -> Plan:
        return _plan(replace(asked, **change))

    def largest(name: str) -> int:
        return most(getattr(asked, name), lambda number: fits(**{name: number}))

    ways = []
    frames = largest("frames")
    if frames:
        fewer = f"frames={frames}" if policy is None else smaller(policy, frames)
        ways += [f"policy={fewer}" if policy is not None else fewer] if fewer else []
    for name in ("max_new_tokens", "questions"):
        number = largest(name)
        ways += [f"{name}={number}"] if number else []
    ways += [f"stages={stages}" for stages in _schedules(asked, fits)]
    lead = f"at most {frames:,} frames fit" if frames else ""
    if not ways and asked.gpu is not None:
        lead, ways = "a larger GPU is needed", _larger(asked)
    return ": ".join((*([lead] if lead else []), " or ".join(ways))) if ways else lead


def _schedules(asked: Asked, fits: Callable[..., Plan]) -> list[str]:
    """A schedule that fits, for a model without one: it changes answers, so it is only named."""
    backbone = asked.config.backbone
    block = backbone.num_hidden_layers // backbone.layers_per_block // 8
    if asked.config.stages or not block:
        return []
    for keep in (0.5, 0.25, 0.125):
        text = f"uniform:{block}:{keep:g}"
        stages = parse_stages(text, asked.config)
        try:
            fits(config=replace(asked.config, stages=stages))
        except ArgumentError:
            continue
        return [text]
    return []


def _larger(asked: Asked) -> list[str]:
    """The least memory, in whole GB, that the request fits; none if the window is what refuses."""
    assert asked.gpu is not None
    try:
        need = min(Needs(asked).of(*choice[1:], choice[0])[0] for choice in choices(asked))
        size = f"{int(-(-need // _GB))}GB"
        _plan(replace(asked, gpu=find_gpu(size)))
    except ArgumentError:
        return []
    return [f"gpu={size}"]
