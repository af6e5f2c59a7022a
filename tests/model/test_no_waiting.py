"""Nothing in the layer loop waits for the device: no value is read back, none is sent there.

Three ways to see it. On meta tensors there is no value to read, and a copy in either direction is
seen as such. On a CPU the operations that read are refused, with the checks that a CPU tensor
allows switched off. On a GPU the driver's own guard refuses to wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.contract import COMPILED
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.ended import Ended
from timeviper_fast.inference.generate import decode
from timeviper_fast.inference.prefix import Prefix
from timeviper_fast.layout import Segment, VisualSpan, tokens_before_layer
from timeviper_fast.model.cache import HybridCache
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.presets import preset
from tvkernels import attention_topk, dropped_indices, use_backend

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2"}
STAGES = (CompressionStage(0, "uniform", 0.7), CompressionStage(8, "attention", 0.3))
TINY = preset("tiny").backbone
# its stages score at rotary positions
QWEN2 = replace(TINY, family="qwen2", pattern="*-" * 5, rope_theta=1e6, attention_bias=True)
Stages = tuple[CompressionStage, ...]
QWEN2_STAGES = tuple(replace(stage, score="normed") for stage in STAGES)
LENGTH, SPAN, ROOM = 28, VisualSpan(2, 20), 4


class NoWaiting(TorchDispatchMode):
    """Inside the block, an operation that reads a value, or copies between devices, fails."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        assert name not in READS, f"{func} reads a value"
        if name in ("index", "index_put", "index_put_"):
            indices = [x for x in args[1] if x is not None]
            assert not [x for x in indices if x.dtype in (torch.bool, torch.uint8)], f"{func} reads"
        if name in ("_to_copy", "copy_"):
            tensors = [x for x in tree_leaves((args, result)) if isinstance(x, Tensor)]
            assert len({x.device for x in tensors}) == 1, f"{func} copies between devices"
        return result


def read_and_answer(
    device: str, batch: int = 2, chunk: int | None = None, stages: Stages = STAGES
) -> tuple[HybridBackbone, Callable[[], None]]:
    """The tiny model, and what runs its layers: a prompt with both stages, then two tokens."""
    torch.manual_seed(0)
    model = HybridBackbone(TINY if stages is STAGES else QWEN2, stages)
    init_weights(model, seed=1)
    model = model.to(device).eval()
    config, segment = model.config, Segment(LENGTH, SPAN)
    lengths = tokens_before_layer((segment,), stages, config.num_hidden_layers)
    words = torch.randn(batch, LENGTH, config.hidden_size).to(device)
    answer = torch.randn(batch, 2, config.hidden_size).to(device)

    @torch.no_grad()
    def run() -> None:
        cache = HybridCache(config, [n + ROOM for n in lengths], batch=batch, device=device)
        hidden, _ = model(words, (segment,), cache, chunk)
        model.logits(hidden[:, -1:])
        for i in range(2):
            hidden, _ = model(answer[:, i : i + 1], cache=cache)
            model.logits(hidden)

    return model, run


def several(device: str) -> tuple[HybridBackbone, Ended, list[Tensor]]:
    """A model, a video that it has read, text between its frames included, and three questions of
    unequal lengths."""
    model, _ = read_and_answer(device)
    width = model.config.hidden_size
    whole = Segment(23, VisualSpan(2, 21), text_inside=1)
    prefix = Prefix(model, chunk=64, expected=whole)
    for length, vision in ((2, False), (12, True), (1, False), (8, True)):
        prefix.push(torch.randn(1, length, width).to(device), vision=vision)
    prefix.finish()
    video = Ended.of(prefix)
    return model, video, [torch.randn(1, length, width).to(device) for length in (5, 1, 3)]


def ask_several(device: str) -> Callable[[], None]:
    """Three questions read into one cache, then two tokens of each."""
    model, video, texts = several(device)
    answer = torch.randn(3, 2, model.config.hidden_size).to(device)
    # where the text lies between the frames is found once
    video.read(texts[:1], max_new_tokens=1)

    @torch.no_grad()
    def run() -> None:
        cache = video.read(texts, max_new_tokens=ROOM).cache
        for i in range(2):
            hidden, _ = model(answer[:, i : i + 1], cache=cache)
            model.logits(hidden)

    return run


def train(device: str) -> Callable[[], None]:
    """Two packed samples through the layers and back."""
    model, _ = read_and_answer(device)
    segments = (Segment(LENGTH, SPAN, query_from_end=1), Segment(19, VisualSpan(3, 12)))
    words = torch.randn(1, LENGTH + 19, model.config.hidden_size).to(device)

    def run() -> None:
        hidden, _ = model(words, segments)
        model.logits(hidden).sum().backward()

    return run


RUNS: dict[str, Callable[[str], Callable[[], None]]] = {
    "prompt": lambda device: read_and_answer(device)[1],
    "Qwen2": lambda device: read_and_answer(device, stages=QWEN2_STAGES)[1],
    "chunks": lambda device: read_and_answer(device, chunk=9)[1],
    "questions": ask_several,
    "training": train,
}
# our dispatch modes do not see torch build a chunk's attention mask; the driver's sync guard does
SEEN = ["prompt", "Qwen2", "questions", "training"]


@pytest.mark.parametrize("name", SEEN)
def test_the_layers_run_without_values(name: str) -> None:
    run = RUNS[name]("meta")
    with NoWaiting():
        run()


@pytest.mark.parametrize("name", SEEN)
def test_the_layers_read_no_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # as on a device: skip the checks that read values of CPU tensors
    for module in [m for m in sys.modules.values() if m and m.__name__.startswith("tvkernels.")]:
        if hasattr(module, "on_host"):
            monkeypatch.setattr(module, "on_host", lambda _: False)
    run = RUNS[name]("cpu")
    with NoWaiting():
        run()


def test_a_step_of_a_ragged_batch_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether all rows have ended is the one value that a step reads; before the first, whether the
    prompts' logits are finite."""
    reads: list[str] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.overloadpacket.__name__ in READS:
                reads.append(str(func))
            return func(*args, **(kwargs or {}))

    for module in [m for m in sys.modules.values() if m and m.__name__.startswith("tvkernels.")]:
        if hasattr(module, "on_host"):
            monkeypatch.setattr(module, "on_host", lambda _: False)
    model, video, texts = several("cpu")
    read = video.read(texts, max_new_tokens=ROOM)
    with Counting():
        assert len(list(decode(model, read, max_new_tokens=ROOM, stop_ids={1}))) == ROOM
    assert reads == ["aten._local_scalar_dense.default"] * (1 + ROOM)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(), lambda _: torch.empty(5, device="meta").tolist(), lambda x: bool(x.any()),
        lambda x: x[x > 0], lambda x: (x > 0).nonzero(), lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), x.sum()),
    ],
)  # fmt: skip
def test_the_guard_sees_who_reads(look: Callable[[Tensor], Any]) -> None:
    x = torch.randn(5)
    with NoWaiting(), pytest.raises((AssertionError, RuntimeError)):
        look(x)


def test_the_guard_sees_who_copies() -> None:
    x = torch.randn(5)
    with NoWaiting(), pytest.raises(AssertionError, match="copies between devices"):
        x.to("meta")
    with NoWaiting(), pytest.raises(NotImplementedError):
        torch.empty(5, device="meta").cpu()


def test_a_choice_on_the_device_is_not_looked_at() -> None:
    """The ops that stages call, with indices that only the device knows."""
    q, k = torch.randn(1, 4, 8, device="meta"), torch.randn(1, 30, 2, 8, device="meta")
    with NoWaiting():
        chosen = attention_topk(q, k, 9, (1, 25))
        assert dropped_indices(chosen.kept, 25).shape == (1, 16)


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU: nothing to wait for")
@pytest.mark.parametrize("name", RUNS)
def test_the_driver_sees_nobody_wait(name: str) -> None:
    with use_backend("triton"):
        run = RUNS[name]("cuda")
        # tuning and compiling synchronise with the device
        run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
