"""Everything in one go through the layers, and a video that is read once: what tests compare.

One go is `HybridBackbone.forward` over [text][video][question] with a cache: no grid, no fork. First
the kept tokens must agree, then the logits, then what is said.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.ended import Ended, Prefill
from timeviper_fast.inference.generate import decode
from timeviper_fast.inference.plan import prompt_lengths
from timeviper_fast.inference.prefix import Prefix
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.cache import HybridCache
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.model.transv import TransV
from timeviper_fast.presets import preset
from tvkernels import dropped_indices

TINY = preset("tiny").backbone
NEW = 5
SCHEDULES = {
    "none": (),
    "shipped": (CompressionStage(3, "uniform", 0.5), CompressionStage(5, "attention", 0.1)),
    "asking alone": (CompressionStage(5, "attention", 0.2),),
    "uniform alone": (CompressionStage(2, "uniform", 0.3),),
    "at 0": (CompressionStage(0, "uniform", 0.6), CompressionStage(5, "attention", 0.3)),
    "uniform behind": (CompressionStage(5, "attention", 0.5), CompressionStage(7, "uniform", 0.2)),
    "no transfer": (
        CompressionStage(3, "uniform", 0.5, transfer=False),
        CompressionStage(5, "attention", 0.1, transfer=False),
    ),
    "two uniform": (CompressionStage(1, "uniform", 0.75), CompressionStage(4, "uniform", 0.25)),
}


QWEN2 = replace(TINY, family="qwen2", pattern="*-", rope_theta=1e6, attention_bias=True)


def backbone(pattern: str, stages, dtype=torch.float32, seed=0, family=TINY) -> HybridBackbone:
    """A random model; of the family `QWEN2`, with rotary positions, the pattern is "*-*-..."."""
    config = replace(family, pattern=pattern)
    model = HybridBackbone(config, stages)
    init_weights(model, seed=seed)
    for module in model.transv:
        if module.stage.transfer:
            torch.nn.init.constant_(module.alpha, 0.7)
    return model.to(dtype).eval()


@torch.no_grad()
def one_go(model: HybridBackbone, embeddings, segment: Segment) -> Prefill:
    lengths = prompt_lengths(model.config, model.stages, segment, NEW)
    rooms = [length + NEW for length in lengths]
    cache = HybridCache(model.config, rooms, batch=len(embeddings), dtype=embeddings.dtype)
    hidden, records = model(embeddings, (segment,), cache)
    logits = model.logits(hidden[:, -1:])[:, 0]
    return Prefill(cache, logits, [record for (record,) in records], lengths, segment)


@contextmanager
def forced(model, records):
    """Inside the block, the stages that select by attention keep what they kept in `records`."""
    asking = [(m, r) for m, r in zip(model.transv, records) if r.scores is not None]

    def choose(module, record, *given):
        scores = TransV._by_attention(module, *given)[2]
        return record.kept, dropped_indices(record.kept, record.tokens_before), scores

    for module, record in asking:
        module._by_attention = partial(choose, module, record)
    try:
        yield
    finally:
        for module, _ in asking:
            del module._by_attention


def read(model, front, vision, *, chunk, pushes, expected=True, batch=1, each=0) -> Ended:
    """[front][vision] in pushes of any size; a frame has `each` vision tokens."""
    announced = None
    if expected:
        span = VisualSpan(front.shape[1], vision.shape[1])
        vision_span = span if span.length else VisualSpan(0, 0)
        announced = Segment(span.stop, vision_span, frame_tokens=each)
    prefix = Prefix(model, chunk=chunk, batch=batch, expected=announced)
    prefix.push(front, vision=False)
    for part in vision.split(pushes, dim=1):
        prefix.push(part, vision=True)
    prefix.finish()
    return Ended.of(prefix)


def said(model, prefill: Prefill) -> list[list[int]]:
    return torch.stack(list(decode(model, prefill, max_new_tokens=NEW)), 1).tolist()


def answer_alike(model, got: Prefill, want: Prefill, rtol=1e-5) -> None:
    """Both say the same tokens, and every step's logits agree: few tokens alone may hide a lot."""
    logits: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    tokens = [
        torch.stack(list(decode(model, one, max_new_tokens=NEW, on_logits=seen.append)), 1)
        for one, seen in zip((got, want), logits)
    ]
    assert torch.equal(*tokens)
    for one, other in zip(*logits):
        assert (one - other).norm() < rtol * other.norm()


def agree(model, got: Prefill, want: Prefill, rtol=1e-5) -> None:
    assert got.stages == want.stages
    assert got.lengths == want.lengths
    assert torch.equal(got.kept, want.kept)
    assert (got.logits - want.logits).norm() < rtol * want.logits.norm()


def words(length: int, seed: int, dtype=torch.float32, batch: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, TINY.hidden_size, generator=generator).to(dtype)


def question_in_one_go(model, front, vision, text) -> Prefill:
    span = VisualSpan(front.shape[1], vision.shape[1])
    whole = torch.cat([front, vision, text], 1)
    segment = Segment(whole.shape[1], span if span.length else VisualSpan(0, 0))
    return one_go(model, whole, segment)


def same_bits(a: Ended, b: Ended, model) -> None:
    text = words(7, 9)
    one, two = (video.read([text], max_new_tokens=NEW) for video in (a, b))
    assert torch.equal(one.logits, two.logits)
    for x, y in zip(one.records, two.records):
        assert torch.equal(x.kept, y.kept)
    assert said(model, one) == said(model, two)


def digest(video: Ended) -> str:
    """SHA-256 of all tensors that a video left below the asking stage."""
    states = [vars(state) for state in video.cache.layers if state is not None]
    values = [value for state in states for value in state.values()]
    values += [part.hidden for part in video.rows]
    values += [x for pair in video.dropped.values() for x in pair]
    total = hashlib.sha256()
    for value in (*values, video.text):
        if isinstance(value, torch.Tensor):
            total.update(value.detach().contiguous().numpy().tobytes())
    return total.hexdigest()
