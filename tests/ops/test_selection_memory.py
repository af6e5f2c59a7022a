"""What a stage needs beyond its inputs and results, at an hour of video: on Triton, of the 9B model.

The launchers run as they are, on tensors that have sizes and no memory; kernels allocate nothing,
so none is launched.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from tests.contract import TRITON
from tests.footprint import Footprint

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU"),
]

TOKENS, LIMIT = 160_000, 64e6
HEADS, KV_HEADS, HEADDIM, HIDDEN = 40, 8, 128, 4480


class NotLaunched:
    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@pytest.fixture(autouse=True)
def _no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        "attention_topk.scores_kernel",
        "attention_topk.select_kernel",
        "compact.kernel",
    ):
        engine = import_module(f"tvkernels.{module}")
        for name in [name for name in vars(engine) if name.endswith("_kernel")]:
            monkeypatch.setattr(engine, name, NotLaunched())


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def beyond(run: Callable[[], Any]) -> int:
    """The most bytes that `run()` holds at a time, without its results."""
    with Footprint() as memory:
        results = run()
    return memory.peak(besides=results)


def choose(form: str, tokens: int) -> Callable[[], Any]:
    """A span of all but a prompt's words, of which a fifth stays."""
    engine = import_module("tvkernels.attention_topk.kernel")
    q, span, keep = empty(1, HEADS, HEADDIM), [16, tokens - 80], tokens // 5
    if form == "keys":
        keys = empty(1, tokens, KV_HEADS, HEADDIM)
        return lambda: engine.select_by_keys(q, keys, keep, span, 0.1, None)
    hidden, weight = empty(1, tokens, HIDDEN), empty(KV_HEADS * HEADDIM, HIDDEN)
    norm = None if form == "hidden" else empty(HIDDEN)
    cos, sin = (empty(tokens, HEADDIM), empty(tokens, HEADDIM)) if form == "turned" else (None,) * 2
    return lambda: engine.select_by_hidden(
        q, hidden, weight, None, norm, 1e-5, cos, sin, None, keep, span, 0.1, None
    )


def gather(tokens: int) -> Callable[[], Any]:
    engine = import_module("tvkernels.compact.kernel")
    x, dropped = empty(1, tokens, HIDDEN), empty(1, tokens // 5 * 4, dtype=torch.int64)
    positions = empty(1, tokens, dtype=torch.int32)
    return lambda: engine.compact_forward(x, dropped, positions, True)


@pytest.mark.parametrize("form", ["keys", "hidden", "normed", "turned"])
def test_scores_topk_and_gather_need_little_and_no_more_than_linearly(form: str) -> None:
    half, whole = (beyond(choose(form, n)) + beyond(gather(n)) for n in (TOKENS // 2, TOKENS))
    # most of it are the logits: one float32 for each query head and token
    assert 4 * HEADS * TOKENS < whole <= LIMIT
    assert whole <= 2 * half


def test_the_gather_needs_nothing() -> None:
    assert beyond(gather(TOKENS)) == 0


def test_what_is_held_is_counted_once_and_until_it_goes() -> None:
    def run() -> torch.Tensor:
        a = empty(1000)
        b = a[:10].view(2, 5)
        c = torch.cat([a, a])
        del a, c
        d = empty(100)
        return b + d[:5]

    with Footprint() as memory:
        result = run()
    # the view keeps the first alive, while the second is gone when the third comes
    assert memory.peak() == 2000 + 4000
    assert memory.sizes == {0: 2000, 1: 4000, 2: 200, 3: result.nbytes}
    assert memory.history[-1] == {0, 2, 3}
    assert memory.peak(besides=[result]) == 6000
