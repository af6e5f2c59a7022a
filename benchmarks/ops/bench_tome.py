"""Token merging: 729 patches of a frame to 16 tokens. Its parts are the frames."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.shapes_video import merge, merge_backward_floor, merge_floor
from benchmarks.timing.bench import FRAMES, Bench, Form, Shape, Split
from benchmarks.timing.peers import tome_per_round


def per_round(x: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor | None, ...]:
    """Upstream's form; it has neither sizes nor assignment."""
    return tome_per_round(x, num_tokens), None, None


# it rounds to x's dtype between rounds, which changes who matches whom: in 16 bits its values are
# others, though its form is right
SECONDS = 45
BENCHES = (
    Bench(
        "token merging",
        merge,
        merge_floor,
        FRAMES,
        Shape("small", 2),
        split=Split(None, {"x": 0}, (0, 0, 0)),
        backward=merge_backward_floor,
        forms={"upstream's rounds": Form(per_round, checked_in=torch.float32)},
    ),
)


def test_case(measured: Any, provider: str, benchmark: Any) -> None:
    measured.report(provider, benchmark)
