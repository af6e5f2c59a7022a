"""Prefill and decode: from embeddings to token ids, one at a time.

prefill(prompt) -> logits of the last position -> sample -> decode one token -> ...
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from timeviper_fast.config import BackboneConfig
from timeviper_fast.errors import ArgumentError, fail, is_integer
from timeviper_fast.inference.ended import Ended, Prefill
from timeviper_fast.inference.plan import prompt_lengths
from timeviper_fast.inference.prefix import Prefix
from timeviper_fast.inference.request import Sampling, check_sampling
from timeviper_fast.inference.step import step_of
from timeviper_fast.layout import Segment
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.stops import StopWatch
from timeviper_fast.video import Progress

__all__ = [
    "check_stop_ids",
    "counted",
    "decode",
    "penalise",
    "prefill",
    "read_front",
    "sample",
]


def check_stop_ids(stop_ids: Collection[int], config: BackboneConfig) -> None:
    """Raise an ArgumentError unless all are ids of the model's vocabulary."""
    if not isinstance(stop_ids, Collection) or not all(
        is_integer(i) and 0 <= i < config.vocab_size for i in stop_ids
    ):
        rule = f"be a collection of token ids in 0 .. {config.vocab_size - 1}"
        fail("generate", "stop_ids", rule, stop_ids)


@torch.no_grad()
def prefill(
    backbone: HybridBackbone,
    embeddings: Tensor,
    segment: Segment | None = None,
    *,
    max_new_tokens: int,
    chunk: int | None = None,
    watch: StopWatch | None = None,
    progress: Progress | None = None,
) -> Prefill:
    """Read a prompt into a fresh cache with room for `max_new_tokens` more.

    Args:
        backbone: the language model.
        embeddings: (batch, seqlen, d_model); every row has the layout of `segment`.
        segment: where the vision tokens lie; None means there are none.
        max_new_tokens: tokens that will be generated at most.
        chunk: tokens per pass through the layers; None reads all at once.
        watch: times the compression stages.
        progress: called with ("prefill", done, all) when a chunk has passed the layers up to a
            stage: prompt tokens, averaged over the layers. On CUDA each call is a host sync.

    Raises:
        ValueError: the prompt is empty or becomes so, it does not fit the model's window with its
            answer, or there is no room for an answer.
    """
    segment = segment or Segment(embeddings.shape[1])
    lengths = prompt_lengths(backbone.config, backbone.stages, segment, max_new_tokens)
    on_pass = counted(progress, lengths, embeddings.device) if progress else None
    ended = read_front(backbone, embeddings, segment, chunk=chunk, watch=watch, on_pass=on_pass)
    text = embeddings[:, ended.segment.length :]
    return ended.read([text], max_new_tokens=max_new_tokens, watch=watch, on_pass=on_pass)


@torch.no_grad()
def read_front(
    backbone: HybridBackbone,
    embeddings: Tensor,
    segment: Segment,
    *,
    chunk: int | None = None,
    watch: StopWatch | None = None,
    on_pass: Callable[[int], None] | None = None,
) -> Ended:
    """Read embeddings (batch, seqlen, d_model) up to their last vision token; nothing without one.

    The arguments are those of `prefill`; `on_pass` is called with (tokens times layers).
    """
    front = Segment(0)
    if segment.span.length:
        front = replace(segment, length=segment.span.stop, query_from_end=0)
    prefix = Prefix(
        backbone,
        chunk=chunk,
        batch=len(embeddings),
        expected=front,
        on_pass=on_pass,
        watch=watch,
    )
    for start, stop, is_vision in segment.runs():
        prefix.push(embeddings[:, start:stop], vision=is_vision)
    prefix.finish()
    return Ended.of(prefix)


def counted(progress: Progress, lengths: list[int], device: torch.device) -> Callable[[int], None]:
    """A function that adds up tokens times layers and reports their share to `progress`."""
    done = 0

    def passed(work: int) -> None:
        nonlocal done
        done += work
        if device.type == "cuda":
            # kernels are queued faster than they run: without this host sync the bar fills at once
            torch.cuda.synchronize(device)
        progress("prefill", done // len(lengths), sum(lengths) // len(lengths))

    passed(0)
    return passed


@torch.no_grad()
def decode(
    backbone: HybridBackbone,
    read: Prefill,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    sampling: Sampling | None = None,
    on_logits: Callable[[Tensor], None] | None = None,
    graph: bool | None = None,
) -> Iterator[Tensor]:
    """Generate token by token, yielding (batch,) int64 ids as they come.

    Ends after `max_new_tokens`, or when every row has produced one of `stop_ids`, which is yielded
    too. A row that has ended repeats its stop id until the others end.

    Args:
        backbone: the language model.
        read: what `prefill` returned; its cache is continued in place.
        max_new_tokens: at most so many tokens; the cache was made for that many.
        stop_ids: token ids that end an answer.
        sampling: how tokens are drawn; greedy when None.
        on_logits: called with each step's (batch, vocab) float32 logits before the draw; of a CUDA
            graph they change with the next step.
        graph: whether each step is one CUDA graph; None: on CUDA, but for short answers.

    Raises:
        ValueError: the prompt's logits are not finite.
    """
    check_sampling(sampling)
    sampling = sampling or Sampling()
    logits, device = read.logits, read.logits.device
    # checked once: this syncs the host, but the first token does so anyway
    if not bool(logits.isfinite().all()):
        kind = str(backbone.embeddings.weight.dtype).removeprefix("torch.")
        narrow = ", or float16 is too narrow for them (try bfloat16)" if kind == "float16" else ""
        raise ArgumentError(
            "generate",
            "the prompt's logits",
            "be finite",
            f"NaN or infinity in {kind}",
            f"the weights are damaged{narrow}",
        )
    # a generator for each row: an answer does not depend on those beside it
    drawn = len(logits) if sampling.temperature > 0 else 0
    generators = [sampling.generator(device) for _ in range(drawn)]
    stops = torch.tensor(sorted(set(stop_ids)), dtype=torch.long, device=device)
    ended = torch.zeros(len(logits), dtype=torch.bool, device=device)
    token = torch.zeros(len(logits), dtype=torch.long, device=device)
    penalty = sampling.repetition_penalty or 1.0
    said = torch.zeros_like(logits, dtype=torch.bool) if penalty != 1 else None
    if backbone.replay is not None and len(logits) > 1:
        read.cache.replay(backbone.replay)
    further = step_of(backbone, read.cache, max_new_tokens, graph)
    for step in range(max_new_tokens):
        if on_logits is not None:
            on_logits(logits)
        if said is not None:
            logits = penalise(logits, said, penalty)
        token = torch.where(ended, token, sample(logits, sampling, generators))
        yield token
        if said is not None:
            said.scatter_(1, token[:, None], True)
        ended = ended | torch.isin(token, stops)
        # The one host sync of a step. A caller that streams the token waits for it anyway.
        if bool(ended.all()) or step + 1 == max_new_tokens:
            return
        logits = further(token)


def penalise(logits: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Make tokens less likely that were generated already.

    Args:
        logits: (batch, vocab) float32.
        said: (batch, vocab) bool, the tokens of each row's answer so far.
        penalty: divides logits above 0, multiplies the others.

    Source: CTRL (arXiv 1909.05858), as in Hugging Face's samplers.
    """
    lower = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(said, lower, logits)


def sample(
    logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator] = ()
) -> Tensor:
    """Draw one token per row: logits (batch, vocab) float32 -> (batch,) int64.

    Each row is drawn by its own generator; without any, by torch's global one.
    Temperature first, then top-k, then top-p on what is left, as Hugging Face's samplers do.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    # Subtract the maximum first and clamp the temperature: a tiny temperature would give
    # 0 / 0 = NaN.
    temperature = max(sampling.temperature, torch.finfo(logits.dtype).tiny)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(dim=-1)
        # Mask a token when more likely ones already sum to top_p. The first always stays.
        beyond = probability.cumsum(dim=-1) - probability >= sampling.top_p
        logits = logits.masked_fill(beyond.gather(-1, order.argsort(dim=-1)), float("-inf"))
    probability = logits.softmax(dim=-1)
    if not generators:
        return torch.multinomial(probability, 1)[:, 0]
    draws = [torch.multinomial(p, 1, generator=g) for p, g in zip(probability, generators)]
    return torch.cat(draws)
