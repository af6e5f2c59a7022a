"""How likely a given answer is behind a prompt that was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from timeviper_fast.errors import fail
from timeviper_fast.inference.ended import Prefill
from timeviper_fast.model.nemotron_h import HybridBackbone

__all__ = ["Likelihood", "likelihood"]


class Likelihood(NamedTuple):
    """How likely an answer is.

    Attributes:
        log: the log-likelihood in nats: the sum over its tokens.
        greedy: whether each of its tokens has the largest logit.
    """

    log: float
    greedy: bool


@torch.no_grad()
def likelihood(backbone: HybridBackbone, read: Prefill, answer_ids: Sequence[int]) -> Likelihood:
    """The likelihood of an answer behind a prompt.

    Args:
        backbone: the model that read the prompt; of a blocked one the answer's tokens are
            response rows.
        read: one prompt, with room for the answer (`max_new_tokens`). Its cache is continued.
        answer_ids: one or more token ids. A stop id at their end counts as a token.

    Raises:
        ValueError: no token, or several prompts.
    """
    if not answer_ids:
        fail("likelihood", "answer_ids", "hold a token or more", answer_ids)
    if len(read.logits) != 1:
        fail("likelihood", "read", "be one prompt", len(read.logits))
    ids = torch.tensor([[*answer_ids]], device=read.logits.device)
    logits = read.logits[:, None]
    if ids.shape[1] > 1:
        hidden, _ = backbone(backbone.embeddings(ids[:, :-1]), cache=read.cache)
        logits = torch.cat([logits, backbone.logits(hidden)], dim=1)
    logs = logits.log_softmax(-1).gather(-1, ids[..., None])
    greedy = bool((logits.argmax(-1) == ids).all())
    return Likelihood(float(logs.double().sum()), greedy)
