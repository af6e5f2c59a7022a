"""One token further: through Python, or as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

from timeviper_fast.model.cache import HybridCache
from timeviper_fast.model.nemotron_h import HybridBackbone

__all__ = ["GraphStep", "Step", "decode_step", "step_of"]

# shorter answers do not pay for the capture
_LEAST = 8
# torch allows one capture at a time in a process; sessions are asked from several threads
_CAPTURING = Lock()

Step = Callable[[Tensor], Tensor]


def decode_step(backbone: HybridBackbone, cache: HybridCache, token: Tensor) -> Tensor:
    """Logits (batch, vocab) behind one more token (batch,) int64 of each row; continues `cache`."""
    hidden, _ = backbone(backbone.embeddings(token)[:, None], cache=cache)
    return backbone.logits(hidden)[:, 0]


def step_of(
    backbone: HybridBackbone, cache: HybridCache, max_new_tokens: int, graph: bool | None
) -> Step:
    """What computes the next logits.

    Args:
        graph: whether to use a CUDA graph; None: on CUDA, but for short answers.
    """
    if graph is None:
        graph = backbone.embeddings.weight.is_cuda and max_new_tokens >= _LEAST
    if graph:
        return GraphStep(backbone, cache)
    return lambda token: decode_step(backbone, cache, token)


class GraphStep:
    """Decode steps of one cache, launched as one CUDA graph each.

    Without it a step of the 9B launches hundreds of kernels one by one, and Python is slower than
    they are. The first step runs as it is, which compiles and tunes kernels; the second one is
    captured; all later ones replay it. The logits stay valid until the next step.

    Args:
        cache: of which nothing is appended otherwise from now on.
    """

    def __init__(self, backbone: HybridBackbone, cache: HybridCache) -> None:
        cache.fix()
        self._backbone, self._cache = backbone, cache
        self._graph: torch.cuda.CUDAGraph | None = None
        self._token: Tensor | None = None

    def __call__(self, token: Tensor) -> Tensor:
        if self._token is None:
            self._token = token.clone()
            return decode_step(self._backbone, self._cache, self._token)
        self._token.copy_(token)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # in the default mode, an allocation of another thread would break the capture off
            with _CAPTURING, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._logits = decode_step(self._backbone, self._cache, self._token)
        # a capture computes nothing
        self._graph.replay()
        return self._logits
