"""FLOPs of encoding, opening, asking and decoding, in integers and before anything runs.

A multiply-add counts as two. Linear layers, attention and the scan are counted; norms, activations,
the short convolution and the merge of patches are not (under 1 % together).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from timeviper_fast.config import ATTENTION, EXPERTS, MAMBA, BackboneConfig, TimeViperConfig
from timeviper_fast.inference.flow import Dropping, Flow, flow

__all__ = [
    "Work",
    "decode_work",
    "encoder_flops",
    "linear_flops",
    "open_work",
    "projector_flops",
    "question_work",
    "scan_flops",
]


class Work(NamedTuple):
    """FLOPs by part.

    Attributes:
        linear: linear layers of the mixers.
        attention: queries times keys and weights times values, of the pairs that the mask allows.
        scan: the state-space scan of the Mamba-2 layers.
        transfer: TransV's projections and its attention of the text to dropped rows.
        scores: of the stages that select by attention.
        head: the vocabulary head, at the last position alone.
    """

    linear: int = 0
    attention: int = 0
    scan: int = 0
    transfer: int = 0
    scores: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        return sum(self)

    def plus(self, other: Work) -> Work:
        """The sum of both, part by part."""
        return Work(*(a + b for a, b in zip(self, other)))


def linear_flops(backbone: BackboneConfig, layer: int) -> int:
    """FLOPs of a layer's linear maps for one token; of experts, those that it passes through."""
    d, kind = backbone.hidden_size, backbone.pattern[layer]
    if kind == MAMBA:
        shared = 2 * backbone.n_groups * backbone.ssm_state_size
        in_width = 2 * backbone.d_inner + shared + backbone.mamba_num_heads
        return 2 * d * in_width + 2 * backbone.d_inner * d
    if kind == ATTENTION:
        q, kv = _widths(backbone)
        return 2 * d * (q + 2 * kv) + 2 * q * d
    if kind == EXPERTS:
        latent = backbone.expert_latent_size
        router = d * backbone.num_experts + 2 * d * latent
        routed = backbone.experts_per_token * (latent or d) * backbone.expert_size
        return 2 * router + 4 * routed + 4 * d * backbone.shared_expert_size
    maps = 3 if backbone.family == "qwen2" else 2
    return 2 * maps * d * backbone.intermediate_size


def scan_flops(backbone: BackboneConfig) -> int:
    """FLOPs of the chunked scan of one Mamba-2 layer for one token."""
    groups, heads = backbone.n_groups, backbone.mamba_num_heads
    size, width = backbone.ssm_state_size, backbone.mamba_head_dim
    inside = backbone.chunk_size * (size * groups + width * heads)
    return inside + 4 * heads * width * size


def _widths(backbone: BackboneConfig) -> tuple[int, int]:
    """Channels of all query heads, and of all key heads."""
    head = backbone.head_dim
    return backbone.num_attention_heads * head, backbone.num_key_value_heads * head


def _layer(backbone: BackboneConfig, layer: int, rows: int, seen: int) -> Work:
    """A layer for `rows` rows that attend to each other causally and to `seen` earlier ones."""
    kind, attention = backbone.pattern[layer], 0
    if kind == ATTENTION:
        pairs = rows * seen + rows * (rows + 1) // 2
        attention = 4 * _widths(backbone)[0] * pairs
    scan = rows * scan_flops(backbone) if kind == MAMBA else 0
    return Work(rows * linear_flops(backbone, layer), attention, scan)


def _dropped_kv(backbone: BackboneConfig, dropping: Dropping) -> int:
    """Keys and values of the dropped rows that the text reads."""
    return 4 * backbone.hidden_size * _widths(backbone)[1] * dropping.transferred


def _told(backbone: BackboneConfig, dropping: Dropping, text: int) -> int:
    """The text's queries, its attention to the dropped rows, and the output projection."""
    if not dropping.transferred:
        return 0
    q = _widths(backbone)[0]
    return text * (4 * backbone.hidden_size * q + 4 * q * dropping.transferred)


def _scores(backbone: BackboneConfig, dropping: Dropping, rows: int) -> int:
    """Scores of one query against `rows` rows: the key projection is folded into the query, except
    where keys are turned by their position."""
    if dropping.stage.select != "attention":
        return 0
    d, (q, kv) = backbone.hidden_size, _widths(backbone)
    if backbone.rope_theta and dropping.stage.score == "normed":
        return 2 * d * q + rows * (2 * d * kv + 2 * q)
    return 4 * d * q + rows * 2 * d * backbone.num_attention_heads


def open_work(config: TimeViperConfig, before: int, frames: int) -> Work:
    """FLOPs of the LLM for what no question can change: the layers in front of the asking layer."""
    backbone, rows = config.backbone, flow(config, before, frames)
    work = Work(transfer=sum(_dropped_kv(backbone, stage) for stage in rows.below))
    for layer in range(rows.asking):
        work = work.plus(_layer(backbone, layer, rows.rows(layer), 0))
    return work


def question_work(
    config: TimeViperConfig, before: int, frames: int, text: int
) -> tuple[Work, Work]:
    """FLOPs of reading one question: (its text in front of the asking layer, all rows from there).

    The second part ends with the logits of the last position.
    """
    backbone, rows = config.backbone, flow(config, before, frames)
    below = Work(transfer=sum(_told(backbone, stage, text) for stage in rows.below))
    for layer in range(rows.asking):
        below = below.plus(_layer(backbone, layer, text, rows.rows(layer)))
    above = _stages_above(backbone, rows, text)
    for layer in range(rows.asking, backbone.num_hidden_layers):
        above = above.plus(_layer(backbone, layer, rows.rows(layer) + text, 0))
    head = 2 * backbone.hidden_size * backbone.vocab_size
    return below, above.plus(Work(head=head))


def _stages_above(backbone: BackboneConfig, rows: Flow, text: int) -> Work:
    """The stages from the asking layer on."""
    work, present = Work(), rows.entering
    for stage in rows.above:
        transfer = _dropped_kv(backbone, stage) + _told(backbone, stage, text)
        scores = _scores(backbone, stage, rows.before + present + text)
        work = work.plus(Work(transfer=transfer, scores=scores))
        present -= stage.dropped
    return work


def decode_work(config: TimeViperConfig, before: int, frames: int, seen: int) -> Work:
    """FLOPs of one more token of one answer, which has `seen` tokens behind the video already."""
    backbone, rows = config.backbone, flow(config, before, frames)
    work = Work(head=2 * backbone.hidden_size * backbone.vocab_size)
    state = 4 * backbone.d_inner * backbone.ssm_state_size
    for layer, kind in enumerate(backbone.pattern):
        step = _layer(backbone, layer, 1, rows.rows(layer) + seen)
        work = work.plus(step._replace(scan=state if kind == MAMBA else 0))
    return work


def encoder_flops(config: TimeViperConfig, frames: int) -> int:
    """FLOPs of the vision encoder for a video, its last clip filled up, or for one image."""
    vision = config.vision
    d, patches = vision.hidden_size, vision.patches_per_frame
    filled = 1 if frames == 1 else -(-frames // config.clip_frames) * config.clip_frames
    clip = 1 if frames == 1 else vision.clip_frames
    prefix = vision.register_tokens
    extra = {"dinov2": 1 + prefix, "internvideo2": 1, "radio": prefix}.get(vision.kind, 0)
    tokens = clip // vision.frames_per_patch * patches + extra
    block = tokens * (8 * d * d + 4 * d * vision.intermediate_size) + 4 * d * tokens * tokens
    embedded = filled * patches * 2 * 3 * vision.patch_size**2 * d
    return embedded + filled // clip * vision.num_blocks * block


def projector_flops(config: TimeViperConfig, frames: int) -> int:
    """FLOPs of the projector's linear maps, of merged tokens."""
    width, out = config.merged_size, config.backbone.hidden_size
    if config.projector.shuffles:
        inner = [config.projector.inner_size]
    else:
        inner = [4 * width, out] if config.projector.kind == "fused_tome_mlp" else [out]
    widths = pairwise([width, *inner, out])
    return config.visual_tokens(frames) * sum(2 * a * b for a, b in widths)
