"""Run a prompt, or a question about a video that was read, and see what each layer looks at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from timeviper_fast.analysis.attention import attention_group_mass, attention_rows, projected
from timeviper_fast.analysis.groups import Groups
from timeviper_fast.analysis.heads import sink_share
from timeviper_fast.analysis.mamba import mamba_group_sums, mamba_rows, scan_weights
from timeviper_fast.analysis.rows import row_sums
from timeviper_fast.analysis.view import LayerView, View
from timeviper_fast.config import BackboneConfig
from timeviper_fast.errors import COUNT, expect, fail, is_integer
from timeviper_fast.inference.ended import Ended
from timeviper_fast.layout import Segment
from timeviper_fast.model.attention import Attention
from timeviper_fast.model.cache import AttentionState
from timeviper_fast.model.nemotron_h import HybridBackbone, Mamba2
from timeviper_fast.model.qwen2 import Rotary

__all__ = ["Looking", "check_maps", "look", "look_behind"]

_NO_COLUMNS = "the video's tokens are in this layer's state, and no longer apart"
# without vision these last rows are looked at
_LAST = 64


@dataclass(frozen=True)
class Looking:
    """What to collect.

    Attributes:
        further: more groups, by name the positions of their tokens in prompt and answer.
        rows: positions in prompt and answer of the rows whose absolute weights, profiles and maps
            are wanted; None: everything behind the last vision token, or the last 64 tokens.
        maps: by layer, the heads whose chosen rows are kept by all columns.
        sinks: how many first tokens count as the sink, 1 or more.
        window: tokens that count as near a row.
        with_dt: whether the weights of Mamba-2 layers hold dt; without, they are those of
            TimeViper's released code.
        by_head: whether each head's mass of all rows is kept, nheads n groups numbers a layer.
    """

    further: Mapping[str, Sequence[int] | Tensor] = field(default_factory=dict)
    rows: Sequence[int] | Tensor | None = None
    maps: Mapping[int, Sequence[int]] = field(default_factory=dict)
    sinks: int = 1
    window: int = 64
    with_dt: bool = True
    by_head: bool = True

    def __post_init__(self) -> None:
        expect("Looking", self, COUNT, "sinks", "window")
        if not (self.sinks and self.window):
            fail("Looking", "sinks, window", "be 1 or more", (self.sinks, self.window))


@torch.no_grad()
def look(
    backbone: HybridBackbone,
    embeddings: Tensor,
    segment: Segment | None = None,
    answer: Tensor | None = None,
    looking: Looking | None = None,
) -> View:
    """What the layers look at when the model reads a prompt and says an answer.

    The answer's tokens are read as they would be decoded: compression stages neither see them nor
    write into them. Memory is linear in the prompt: that of reading it at once, one layer's weights
    at a time, and what `LayerView` holds; r rows by n columns only for heads of `looking.maps`.
    Time is linear for Mamba-2 layers and quadratic for attention, as in the model, plus r rows by n
    columns a head.

    Args:
        backbone: the language model.
        embeddings: (1, n, d_model), as `embed` gives them.
        segment: where the vision lies in them; None: there is none.
        answer: (1, a, d_model) embeddings of the answer's tokens; None: no answer.
        looking: what to collect; None: `Looking()`.

    Raises:
        ValueError: a batch of prompts, or an option that does not fit the prompt.
    """
    segment, looking = segment or Segment(embeddings.shape[1]), looking or Looking()
    answer = _answer("look", embeddings, answer)
    groups = Groups.of(segment, answer.shape[1], looking.further)
    chosen = _positions(segment, groups, looking)
    check_maps(backbone.config, looking.maps)
    views: list[LayerView] = []
    prompt, total = embeddings, segment.vision_present
    for number in range(-1, len(backbone.stages)):
        if number >= 0 and segment.vision_tokens:
            layer = backbone.layers[backbone.stages[number].layer]
            stage = backbone.transv[number]
            prompt, (segment,), (record,) = stage(prompt, (segment,), layer.mixer, layer.norm)
            groups = groups.keep(record.kept[0])

        def seen(layer: int, x: Tensor, rotary: Rotary | None, here: Groups = groups) -> None:
            views.append(_view(backbone, layer, x, rotary, None, here, chosen, looking))

        with _mixers_told(backbone, seen):
            # without a segment no stage runs
            joint = backbone.run(
                torch.cat([prompt, answer], dim=1),
                start_stage=None if number < 0 else number,
                stop_stage=number + 1,
            ).hidden
        prompt, answer = joint.split([prompt.shape[1], answer.shape[1]], dim=1)
    depth = len(backbone.layers)
    return View(groups.names, tuple(views), {}, looking.with_dt, depth, total)


@torch.no_grad()
def look_behind(
    ended: Ended, text: Tensor, answer: Tensor | None = None, looking: Looking | None = None
) -> View:
    """What the layers look at when a question is asked behind a video that was read before.

    From the asking stage on every layer has all its rows. Below it, attention layers have the rows
    of the question and the answer, and the video's keys; Mamba-2 layers keep their state alone, and
    are listed in `View.skipped`. Memory is linear: the inputs of all layers, where those from the
    asking stage on see what it keeps, and the figures as in `look`.

    Args:
        ended: the video.
        text: (1, n, d_model) embeddings of the question; n is 1 or more.
        answer, looking: as in `look`; positions count from the first token of the prompt.

    Raises:
        ValueError: a batch, a question without a token, a video of which tokens were forgotten, or
            in which text lies between vision tokens, or an option that does not fit.
    """
    backbone, looking = ended.backbone, looking or Looking()
    answer = _answer("look_behind", text, answer)
    if not text.shape[1]:
        fail("look_behind", "text", "have at least one token", tuple(text.shape))
    check_maps(backbone.config, looking.maps)
    inputs: dict[int, list[Tensor]] = {}

    def seen(layer: int, x: Tensor, _: Rotary | None) -> None:
        inputs.setdefault(layer, []).append(x)

    with _mixers_told(backbone, seen):
        read = ended.read([text], max_new_tokens=max(1, answer.shape[1]))
        if answer.shape[1]:
            backbone.run(answer, cache=read.cache)
    groups = Groups.of(read.segment, answer.shape[1], looking.further)
    chosen = _positions(read.segment, groups, looking)
    views, skipped = [], {}
    records = {record.layer: record for record in read.records}
    for layer in range(backbone.config.num_hidden_layers):
        if layer in records:
            groups = groups.keep(records[layer].kept[0])
        state = read.cache.layers[layer]
        if layer not in inputs:
            continue
        x, keys = torch.cat(inputs.pop(layer), dim=1), None
        if isinstance(state, AttentionState):
            keys = state.everything[0][0]
            if len(keys) != len(groups):
                rule = f"hold all {len(groups)} tokens that came to layer {layer}"
                fail("look_behind", "ended", rule, len(keys), "bounded streams forget some")
        elif x.shape[1] != len(groups):
            skipped[layer] = _NO_COLUMNS
            continue
        rotary = None
        if backbone.config.rope_theta:
            start = len(groups) - x.shape[1]
            rotary = Rotary.of(backbone.config, [start], (x.shape[1],), x)
        views.append(_view(backbone, layer, x, rotary, keys, groups, chosen, looking))
    sizes = len(backbone.layers), read.segment.vision_present
    return View(groups.names, tuple(views), skipped, looking.with_dt, *sizes)


def _view(
    backbone: HybridBackbone,
    layer: int,
    x: Tensor,
    rotary: Rotary | None,
    keys: Tensor | None,
    groups: Groups,
    chosen: Tensor,
    looking: Looking,
) -> LayerView:
    """The figures of a layer with the input x (1, n, d_model), the last n tokens of `groups`."""
    mixer = backbone.layers[layer].mixer
    first = len(groups) - x.shape[1]
    at = groups.rows(chosen)
    at = at[at >= first]
    indicator = groups.indicator(looking.sinks).to(x.device)
    attends = isinstance(mixer, Attention)
    if isinstance(mixer, Attention):
        q, own = projected(mixer, x, rotary)
        k = own if keys is None else keys.to(own.dtype)
        mass, blocks = attention_group_mass(q, k, indicator), attention_rows(q, k, at)
    else:
        assert isinstance(mixer, Mamba2)
        weights, size = scan_weights(mixer, x), mixer.config.chunk_size
        mass = mamba_group_sums(weights, indicator, size, with_dt=looking.with_dt)
        blocks = mamba_rows(weights, at, with_dt=looking.with_dt)
    maps = looking.maps.get(layer, ())
    sums = row_sums(blocks, indicator, len(mass), window=looking.window, maps=maps)
    if attends:
        given = mass[..., -1].cpu(), torch.arange(first, len(groups))
    else:
        total = sums.absolute[..., :-1].sum(-1)
        given = sums.absolute[..., -1] / total.masked_fill(total == 0, 1.0), at
    mass = mass[..., :-1]
    return LayerView(
        layer=layer,
        kind="attention" if attends else "mamba",
        groups=groups,
        mean_mass=mass.mean(0).float().cpu(),
        mass=mass.float().cpu() if looking.by_head else None,
        chosen=at,
        absolute=sums.absolute[..., :-1],
        sink=sink_share(*given, looking.sinks),
        profile=sums.profile,
        maps=sums.maps,
    )


@contextmanager
def _mixers_told(
    backbone: HybridBackbone, seen: Callable[[int, Tensor, Rotary | None], None]
) -> Iterator[None]:
    """Call `seen` with (layer, input, positions) whenever an attention or Mamba-2 layer runs in
    this thread. Sessions of other threads share the layers."""
    own = threading.get_ident()

    def hook_of(layer: int) -> Callable[[nn.Module, tuple], None]:
        def hook(mixer: nn.Module, given: tuple) -> None:
            if threading.get_ident() == own:
                seen(layer, given[0], given[1].rotary)

        return hook

    handles = [
        block.mixer.register_forward_pre_hook(hook_of(layer))
        for layer, block in enumerate(backbone.layers)
        if isinstance(block.mixer, (Attention, Mamba2))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _answer(owner: str, prompt: Tensor, answer: Tensor | None) -> Tensor:
    """The answer's embeddings, of which there may be none; prompt and answer are checked."""
    answer = prompt[:, :0] if answer is None else answer
    for name, given in (("prompt", prompt), ("answer", answer)):
        if given.ndim != 3 or len(given) != 1:
            fail(owner, name, "be one sequence of embeddings (1, n, d_model)", tuple(given.shape))
    return answer


def _positions(segment: Segment, groups: Groups, looking: Looking) -> Tensor:
    """The chosen rows as positions in prompt and answer."""
    total = len(groups)
    if looking.rows is None:
        start = segment.span.stop if segment.span.length else max(0, total - _LAST)
        return torch.arange(start, total)
    rows = torch.as_tensor(looking.rows)
    if rows.numel() and (rows.is_floating_point() or rows.dtype == torch.bool):
        fail("Looking", "rows", "be integers", looking.rows)
    rows = rows.long()
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < total:
        fail("Looking", "rows", f"lie in 0 .. {total - 1}", [int(rows.min()), int(rows.max())])
    return rows


def check_maps(config: BackboneConfig, maps: Mapping[int, Sequence[int]]) -> None:
    """Refuse maps of heads that do not exist before anything runs."""
    for layer, heads in maps.items():
        known = is_integer(layer) and 0 <= layer < config.num_hidden_layers
        kind = config.pattern[layer] if known else ""
        count = {"M": config.mamba_num_heads, "*": config.num_attention_heads}.get(kind, 0)
        if not count:
            fail("Looking", "maps", "name layers of attention or Mamba-2", layer)
        if not all(is_integer(head) and 0 <= head < count for head in heads):
            fail("Looking", "maps", f"name heads 0 .. {count - 1} of layer {layer}", [*heads])
