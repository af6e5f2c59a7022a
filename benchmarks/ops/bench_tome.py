"""Token merging: 729 patches of a frame to 16 tokens. Its parts are the frames."""

from __future__ import annotations

import torch

from benchmarks.shapes.calls import merge
from benchmarks.timing.bench import FRAMES, Bench, Form, Split
from benchmarks.timing.peers import tome_per_round


def per_round(x: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor | None, ...]:
    """Upstream's form; it has neither sizes nor assignment."""
    return tome_per_round(x, num_tokens), None, None


# upstream's form rounds to x's dtype between rounds, which changes the matches: in 16 bits its
# values differ though it is right
FORMS = {"upstream's rounds": Form(per_round, checked_in=torch.float32)}
BENCHES = (Bench("token merging", merge, FRAMES, 2, Split(None, {"x": 0}, (0, 0, 0)), forms=FORMS),)
