"""Token selection by one query row: from keys, and from hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.shapes.calls import select, select_hidden
from benchmarks.timing.bench import Bench, Form
from benchmarks.timing.peers import topk_of_map, topk_of_projection, topk_with_masks


def judge(arguments: Mapping[str, Any], results: Sequence[torch.Tensor]) -> str | None:
    """Kept and dropped must be a choice by the scores that are returned beside them, in order."""
    kept, dropped, scores = results
    if not all(bool((part.diff(dim=1) > 0).all()) for part in (kept, dropped)):
        return "its indices do not ascend"
    every = torch.cat([kept, dropped], 1).sort(1).values
    if not torch.equal(every, torch.arange(scores.shape[1], device=kept.device).expand_as(every)):
        return "kept and dropped are not all of the span, each token once"
    least, most = scores.gather(1, kept).amin(1), scores.gather(1, dropped).amax(1)
    return None if bool((least >= most).all()) else "it dropped a token above one that it kept"


OF_HIDDEN = {
    "upstream's selection": Form(topk_with_masks),
    "projected keys": Form(topk_of_projection),
}
BENCHES = (
    Bench("selection", select, forms={"repeated keys": Form(topk_of_map)}, judge=judge),
    Bench("selection from hidden states", select_hidden, forms=OF_HIDDEN, judge=judge),
)
