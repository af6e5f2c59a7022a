"""The ops that are timed: of each the benches, their shapes, and how a call falls into parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks import shapes
from benchmarks.timing import peers
from benchmarks.timing.bench import DECODE, FRAMES, VIDEOS, Bench, Provider, Split


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


def state_update(bits: int, dtype: torch.dtype) -> Bench:
    arguments = {"state": 1, "x": 1, "dt": 1, "A": 0, "B": 1, "C": 1, "D": 0, "dt_bias": 0}
    return Bench(
        f"decode step of the scan, {bits} bit state", shapes.state_update(dtype, 1), DECODE, 2,
        Split(8, arguments, (1,)), changes=("state",),
    )  # fmt: skip


CHANNELS = {"x": 1, "weight": 0, "bias": 0}
# by group of heads
GROUPS = {"x": 2, "dt": 2, "A": 0, "B": 2, "C": 2, "D": 0, "dt_bias": 0}
OF_KEYS = (Provider("repeated keys", lambda op: peers.topk_of_map),)
OF_HIDDEN = (
    Provider("upstream's selection", lambda op: peers.topk_with_masks),
    Provider("projected keys", lambda op: peers.topk_of_projection),
)
# upstream's form rounds to x's dtype between rounds, which changes the matches: in 16 bits its
# values differ though it is right
PER_ROUND = (
    Provider("upstream's rounds", lambda op: peers.tome_per_round, checked_in=torch.float32),
)
PER_ROW = (Provider("torch SDPA", lambda op: peers.sdpa_per_row, before=peers.joined),)
TWO_OPS = (Provider("our two ops", lambda op: peers.mixer_step_of_two, before=peers.with_A),)

BENCHES: dict[str, tuple[Bench, ...]] = {
    "attention_topk": (
        Bench("selection", shapes.select, forms=OF_KEYS, judge=judge),
        Bench("selection from hidden states", shapes.select_hidden, forms=OF_HIDDEN, judge=judge),
    ),
    "causal_conv1d": (
        Bench("convolution", shapes.conv, split=Split(96, CHANNELS, (1,))),
        Bench(
            "decode step of the convolution", shapes.conv_update, DECODE, 2,
            Split(96, {**CHANNELS, "conv_state": 1}, (1,)), changes=("conv_state",),
        ),
    ),
    # rows move whole, so a range of channels is an independent part
    "compact": (Bench("rows taken out", shapes.leave, split=Split(64, {"x": 2}, (2, 2, 0))),),
    "decode_step": (
        Bench(
            "decode step of the mixer", shapes.mixer_step, DECODE, 2, forms=TWO_OPS,
            changes=("conv_state", "ssm_state"),
        ),
    ),
    "gated_cross_attention": (
        Bench(
            "transfer into the text", shapes.transfer, small=4,
            forms=(Provider("torch SDPA", lambda op: peers.sdpa_transfer),),
        ),
    ),
    "prefix_attention": (
        Bench("answers over a video", shapes.attend_step, VIDEOS, forms=PER_ROW),
        Bench("text over a video", shapes.attend, VIDEOS, forms=PER_ROW),
    ),
    "relu2": (Bench("activation of the MLP", shapes.activation, split=Split(64, {"x": 1}, (1,))),),
    "replay_state_update": (
        Bench(
            "decode step of the scan, replayed", shapes.replayed(1), DECODE, 2,
            changes=("state", "pending_x", "pending_dt", "pending_B", "written"),
        ),
    ),
    "rmsnorm": (
        Bench("gated norm", shapes.gated_norm, split=Split(64, {"x": 1, "z": 1}, (1,))),
        Bench(
            "residual norm", shapes.residual_norm,
            split=Split(64, {"x": 1, "residual": 1}, (1, 1)),
        ),
    ),
    "selective_state_update": (state_update(32, torch.float32), state_update(16, torch.bfloat16)),
    # longer, a call of plain PyTorch takes seconds and as much memory as the GPU has
    "ssd": (Bench("scan", shapes.scan_of(), split=Split(8, GROUPS, (2, 1)), plain_up_to=16_384),),
    "tome": (
        Bench(
            "token merging", shapes.merge, FRAMES, 2, Split(None, {"x": 0}, (0, 0, 0)),
            forms=PER_ROUND,
        ),
    ),
}  # fmt: skip
