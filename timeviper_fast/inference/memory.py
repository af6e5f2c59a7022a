"""Bytes of a session, its questions and the work on them, in integers and before anything runs.

`weights`, `session_bytes`, `fork_bytes` and `logits_bytes` are exact: what is allocated has these
sizes. `question_bytes`, `waiting_bytes`, `block_bytes` and `encoder_bytes` are upper bounds of what
lives for a moment. The dtype is that of the model, by its name.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from timeviper_fast.config import ATTENTION, EXPERTS, MAMBA, BackboneConfig, TimeViperConfig
from timeviper_fast.errors import fail
from timeviper_fast.inference.content_stage import held_tokens
from timeviper_fast.inference.flow import Flow, asking_layer, flow
from timeviper_fast.model.experts import Router
from timeviper_fast.model.model import TimeViperNetwork

__all__ = [
    "Weights",
    "block_bytes",
    "encoder_bytes",
    "fork_bytes",
    "held_bytes",
    "idle_numbers",
    "item_bytes",
    "logits_bytes",
    "question_bytes",
    "session_bytes",
    "waiting_bytes",
    "weights",
]

_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
# float32 copies that the reference ops make of one block of rows, whatever the size of the call
_SCRATCH = 8 << 20


def item_bytes(dtype: str) -> int:
    """Bytes of one number.

    Raises:
        ArgumentError: of `dtype`: no name of a dtype that models have.
    """
    if dtype not in list(_ITEM_BYTES):
        fail("plan", "dtype", f"be one of {', '.join(_ITEM_BYTES)}", dtype)
    return _ITEM_BYTES[dtype]


class Weights(NamedTuple):
    """Parameters by part, in numbers.

    Attributes:
        vision, projector: of the encoder and the projector, buffers included.
        embeddings: of the vocabulary's table.
        layers: of each layer of the LLM.
        active: those of each layer that one token passes through: its experts, not the others.
        stages: of each compression stage, in order.
        head: of the final norm and the vocabulary head, without a weight that is tied to the table.
        float32: how many of all these are float32 in a model of any dtype.
    """

    vision: int
    projector: int
    embeddings: int
    layers: tuple[int, ...]
    active: tuple[int, ...]
    stages: tuple[int, ...]
    head: int
    float32: int

    @property
    def llm(self) -> int:
        return self.embeddings + sum(self.layers) + sum(self.stages) + self.head

    @property
    def total(self) -> int:
        return self.vision + self.projector + self.llm

    def nbytes(self, dtype: str) -> int:
        """Bytes of all of them in a model of this dtype."""
        e = item_bytes(dtype)
        return self.total * e + self.float32 * (4 - e)


@lru_cache(maxsize=32)
def weights(config: TimeViperConfig) -> Weights:
    """Count a model's parameters on the meta device: nothing is allocated or loaded."""
    with torch.device("meta"):
        model = TimeViperNetwork(config)

    def count(*modules: torch.nn.Module) -> int:
        numbers = (x for module in modules for x in (*module.parameters(), *module.buffers()))
        return sum(x.numel() for x in numbers)

    llm = model.backbone
    head = count(llm.norm_f) + (0 if config.backbone.tie_word_embeddings else count(llm.lm_head))
    return Weights(
        count(model.vision),
        count(model.projector),
        count(llm.embeddings),
        layers := tuple(map(count, llm.layers)),
        tuple(n - idle_numbers(config.backbone, i) for i, n in enumerate(layers)),
        tuple(map(count, llm.transv)),
        head,
        sum(
            len(part.e_score_correction_bias) for part in llm.modules() if isinstance(part, Router)
        ),
    )


def idle_numbers(backbone: BackboneConfig, layer: int) -> int:
    """Parameters of the experts of a layer that one token does not choose."""
    if backbone.pattern[layer] != EXPERTS:
        return 0
    width = backbone.expert_latent_size or backbone.hidden_size
    idle = backbone.num_experts - backbone.experts_per_token
    return idle * 2 * width * backbone.expert_size


def _kv_bytes(backbone: BackboneConfig, e: int) -> int:
    """Keys and values of one token in one layer."""
    return 2 * backbone.num_key_value_heads * backbone.head_dim * e


def _state_bytes(backbone: BackboneConfig, e: int) -> int:
    """State of one Mamba-2 layer: convolution ring, its position (int32), SSM state (float32)."""
    ring = backbone.conv_dim * backbone.conv_kernel * e
    return ring + 4 + 4 * backbone.d_inner * backbone.ssm_state_size


def session_bytes(
    config: TimeViperConfig, before: int, frames: int, dtype: str = "bfloat16"
) -> dict[str, int]:
    """What a video leaves behind for all its questions, by part.

    Args:
        config: of the model.
        before: text tokens in front of the video.
        frames: of the video.
        dtype: of the model.

    Returns:
        "states": of the Mamba-2 layers in front of the asking layer. "kv": keys and values of the
        attention layers there. "dropped_kv": keys and values of what the uniform stages there
        dropped, for the transfer. "rows": what enters the asking layer. "source": an int32 for each
        of these rows. "seconds": a float64 for each frame.
    """
    backbone, e, rows = config.backbone, item_bytes(dtype), flow(config, before, frames)
    pattern, kv = backbone.pattern[: rows.asking], _kv_bytes(backbone, e)
    stored = before + rows.entering if rows.asking < backbone.num_hidden_layers else 0
    return {
        "states": pattern.count(MAMBA) * _state_bytes(backbone, e),
        "kv": kv * sum(rows.rows(i) for i, kind in enumerate(pattern) if kind == ATTENTION),
        "dropped_kv": kv * sum(stage.transferred for stage in rows.below),
        "rows": backbone.hidden_size * e * stored,
        "source": 4 * stored,
        "seconds": 8 * frames,
    }


def fork_bytes(
    config: TimeViperConfig,
    before: int,
    frames: int,
    text: int,
    max_new_tokens: int,
    dtype: str = "bfloat16",
) -> dict[str, int]:
    """What one question in flight holds besides the session, by part.

    Args:
        config, before, frames, dtype: as in `session_bytes`.
        text: tokens of the question, behind the video.
        max_new_tokens: room for the answer.

    Returns:
        "states": of all Mamba-2 layers. "tails": keys and values of question and answer in front of
        the asking layer. "upper_kv": keys and values from the asking layer on.
    """
    backbone, e, rows = config.backbone, item_bytes(dtype), flow(config, before, frames)
    kv, own = _kv_bytes(backbone, e), text + max_new_tokens
    below = backbone.pattern[: rows.asking].count(ATTENTION)
    upper = [i for i in backbone.layers_of(ATTENTION) if i >= rows.asking]
    return {
        "states": backbone.pattern.count(MAMBA) * _state_bytes(backbone, e),
        "tails": kv * below * own,
        "upper_kv": kv * sum(rows.rows(i) + own for i in upper),
    }


def logits_bytes(config: TimeViperConfig, questions: int, dtype: str = "bfloat16") -> int:
    """Logits of one step: of the model's dtype, and float32 ones where that is narrower."""
    e = item_bytes(dtype)
    return questions * config.backbone.vocab_size * (e + (4 if e < 4 else 0))


def question_bytes(
    config: TimeViperConfig,
    before: int,
    frames: int,
    text: int,
    chunk: int,
    dtype: str = "bfloat16",
    on_host: bool = False,
) -> int:
    """Upper bound of what lives while one question is read, besides session and fork.

    At the asking stage there are its scores (float32, of each query head), the rows that stay, and
    with a transfer those that it drops, and their keys and values. In the layers behind there are
    the rows that enter, those that leave, and a block or what a later stage takes apart. With
    `on_host` the session's rows come for the asking stage alone, and before that the keys and
    values of what earlier stages dropped.
    """
    backbone, e, rows = config.backbone, item_bytes(dtype), flow(config, before, frames)
    row, kv = backbone.hidden_size * e, _kv_bytes(backbone, e)
    upper = upper_rows(rows, text)
    block = block_bytes(config, min(chunk, max(upper, text)), dtype)
    if rows.asking == backbone.num_hidden_layers:
        return 2 * row * text + block
    seen = before + rows.entering + text
    asked, *later = rows.above
    transferred = asked.transferred * (row + kv)
    # two lists of int64 numbers of rows: those that stay and go, and the order by score
    scored = (4 * backbone.num_attention_heads + 16) * seen
    at_the_stage = scored + row * upper + transferred
    if on_host:
        dropped = kv * sum(stage.transferred for stage in rows.below)
        at_the_stage = max(dropped, at_the_stage + row * (before + rows.entering))
    # a later stage copies the rows that it keeps and drops beside those that entered and left
    behind = block
    for stage in later:
        arriving = rows.rows(stage.stage.layer) + text + stage.dropped
        behind = max(behind, row * arriving + kv * stage.transferred)
    return max(at_the_stage, 2 * row * upper + behind)


def waiting_bytes(config: TimeViperConfig, chunk: int, dtype: str = "bfloat16") -> int:
    """Upper bound of the rows on their way through a prefix, besides one layer's activations.

    Rows wait for a full block of `chunk` in front of each run of layers and of each transfer. A run
    holds the block that it has read, as it came and as it left, while the next one works on it.
    """
    below = [stage for stage in config.stages if stage.layer < asking_layer(config)]
    blocks = 3 + 3 * len(below) + sum(stage.transfer for stage in below)
    return blocks * chunk * config.backbone.hidden_size * item_bytes(dtype)


def held_bytes(config: TimeViperConfig, before: int, frames: int, dtype: str = "bfloat16") -> int:
    """Upper bound of the rows that a content stage holds until all frames have come; 0 without."""
    first = next(iter(config.stages), None)
    if first is None or not first.by_content:
        return 0
    held = held_tokens(first, config.visual_tokens(frames), config.frame_tokens(frames))
    return (before + held) * config.backbone.hidden_size * item_bytes(dtype)


def upper_rows(rows: Flow, text: int) -> int:
    """Rows of a question from the asking layer on; its text alone where there is none."""
    asks = rows.asking < len(rows.vision)
    return rows.rows(rows.asking) + text if asks else text


def block_bytes(config: TimeViperConfig, rows: int, dtype: str = "bfloat16") -> int:
    """Upper bound of the activations of one layer while `rows` rows pass through it.

    The widest layer counts: its input and normed input, and what its mixer holds at a time.
    """
    backbone, e = config.backbone, item_bytes(dtype)
    d, inner = backbone.hidden_size, backbone.d_inner
    q = backbone.num_attention_heads * backbone.head_dim
    kv = backbone.num_key_value_heads * backbone.head_dim
    # in_proj's output, the convolution's, the scan's, and that of the gated norm
    in_proj = inner + backbone.conv_dim + backbone.mamba_num_heads
    mamba = in_proj + backbone.conv_dim + 2 * inner
    # the hidden layer before, inside and behind its activation
    mlp = 3 * backbone.intermediate_size
    attention = d + 3 * q + 2 * kv
    numbers = {MAMBA: mamba, ATTENTION: attention, EXPERTS: _expert_numbers(backbone, e)}
    widest = max(numbers.get(kind, mlp) for kind in set(backbone.pattern))
    turned = 16 * q * rows if backbone.rope_theta else 0  # four float32 copies of the queries
    mixing = max(widest * e * rows, attention * e * rows + turned)
    return 2 * d * e * rows + mixing + _SCRATCH


def _expert_numbers(backbone: BackboneConfig, e: int) -> int:
    """Numbers of the model's dtype that a mixture of experts holds for each of its rows."""
    d, k, hidden = backbone.hidden_size, backbone.experts_per_token, backbone.expert_size
    width = backbone.expert_latent_size or d
    wide = max(4, e) // e
    # the row and its scores in float32
    router = wide * (d + 3 * backbone.num_experts)
    # rows by expert beside the hidden layer before and behind its activation, or beside results
    routed = k * max(3 * width, width + 2 * hidden, 2 * width + hidden)
    # results in the order of the tokens, their sum so far, the next one and the new sum
    added = k * width + 3 * wide * width
    shared = d + 2 * backbone.shared_expert_size
    # weights, and int64 numbers of experts and of rows
    chosen = 40 * k // e
    return chosen + backbone.expert_latent_size + max(router, routed, added, shared)


def encoder_bytes(config: TimeViperConfig, frames: int, dtype: str = "bfloat16") -> int:
    """Upper bound of the activations while `frames` frames are encoded at a time.

    It counts pictures at the encoder's size. The decoded pictures that they are made of are not
    part of it.
    """
    vision, e = config.vision, item_bytes(dtype)
    d = vision.hidden_size
    # input and normed input, then the MLP before and behind its activation, or attention
    numbers = max(2 * d + 2 * vision.intermediate_size, 8 * d)
    # thin frames that keep their aspect may have more patches than a square
    area = max(vision.image_size**2, vision.patches_per_frame * vision.patch_size**2)
    pixels = 3 * area
    tokens = vision.patches_per_frame + vision.register_tokens + 1
    return frames * e * (tokens * numbers + pixels) + _SCRATCH
