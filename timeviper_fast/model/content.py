"""How much each vision token differs from the frame before it, and which tokens differ the most.

    d(t, i) = 1 - cos(x(t, i), x(t - 1, i)),    d(0, i) = 255

Projected tokens x of frame t are compared with those of frame t - 1, whether or not those are kept,
in float32. NVIDIA's servers compute d in the model's dtype: in bfloat16 its steps are 2^-8 near 1,
so many tokens tie there and other ones stay.

There is no kernel for this. At 256 tokens of 5,120 channels in bfloat16 a fused one would read
5.2 MB per frame, 1.1 us at 4.8 TB/s; torch's separate passes in float32 move about ten times that.
The vision encoder needs 1.5 TFLOP for the same frame, which is 3 ms at 500 TFLOP/s.

Source: efficient video sampling (EVS) of NVIDIA's Nemotron Nano V2 VL.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FIRST", "changes", "most_changed"]

# the change of a token that has no frame before it
FIRST = 255.0


@torch.no_grad()
def changes(frames: Tensor, before: Tensor | None, best: bool) -> Tensor:
    """The change of each token since the frame before.

    Each frame is compared by itself: shapes, and with them rounding, do not depend on how many
    frames come together.

    Args:
        frames: (t, n, d_model) projected tokens of frames, or of clips that are merged as one.
        before: (n, d_model), the frame in front of them; None if there is none.
        best: compare with the most similar token of the frame before, as merged tokens have no
            fixed place; False compares with the token at the same place.

    Returns:
        (t, n) float32 on the device of `frames`.
    """
    found = []
    for frame in frames:
        if before is None:
            found.append(frame.new_full((len(frame),), FIRST, dtype=torch.float32))
        elif best:
            now, then = (F.normalize(x.float(), dim=-1) for x in (frame, before))
            found.append(1 - (now @ then.T).amax(dim=1))
        else:
            found.append(1 - F.cosine_similarity(frame.float(), before.float(), dim=-1))
        before = frame
    if not found:
        return frames.new_empty(frames.shape[:2], dtype=torch.float32)
    # tokens that are NaN stay, so that the check of the logits finds them
    return torch.stack(found).nan_to_num(nan=FIRST)


def most_changed(scores: Tensor, count: int, order: Tensor | None = None) -> Tensor:
    """(n,) bool: which `count` of the tokens have the largest scores; of equal ones the earlier.

    Args:
        scores: (n,) float32 without NaN.
        count: 0 to n.
        order: (n,) int64, distinct, ascending in time; None: the tokens stand in order.
    """
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = scores.kthvalue(len(scores) - count + 1).values
    stays = scores > least
    ties = (scores == least).nonzero()[:, 0]
    if order is not None:
        ties = ties[order[ties].argsort()]
    stays[ties[: count - int(stays.sum())]] = True
    return stays
