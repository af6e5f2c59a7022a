"""The model's shape in frozen dataclasses: every field with its unit, every rule checked once.

Sizes are counts of channels, heads or layers unless said otherwise. Paper letters follow Mamba-2
(arXiv 2405.21060): H heads, P head dimension, N state size, G groups, Q chunk length. Other
projects' names of these fields appear in `checkpoint/` only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from timeviper_fast.errors import (
    ABOVE_0,
    BOOL,
    COUNT,
    FROM_0,
    IDS,
    INTEGER,
    OPTIONAL_SIZE,
    RANGE,
    RATIO,
    SCALES,
    SIZE,
    TEXT,
    TRIPLE,
    Kind,
    expect,
    fail,
    instance_of,
)

__all__ = [
    "ATTENTION",
    "MAMBA",
    "MLP",
    "BackboneConfig",
    "CompressionStage",
    "ProjectorConfig",
    "Selection",
    "TimeViperConfig",
    "VisionConfig",
    "check_stages",
]

Selection = Literal["uniform", "attention"]
Score = Literal["raw", "normed"]
Spacing = Literal["exact", "linspace"]
Family = Literal["nemotron_h", "qwen2"]
TokenOrder = Literal["raw", "ascending", "descending"]

MAMBA, ATTENTION, MLP = "M", "*", "-"

_PATTERN = Kind(
    "be a non-empty string of the letters M, * and -",
    lambda v: isinstance(v, str) and v != "" and set(v) <= {MAMBA, ATTENTION, MLP},
)


def _expect_one_of(owner: str, name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        fail(owner, name, f"be one of {', '.join(map(repr, choices))}", value)


@dataclass(frozen=True)
class CompressionStage:
    """One place inside the LLM where vision tokens are dropped.

    Attributes:
        layer: the stage runs on the residual stream that enters this layer (0-based).
        select: "uniform" keeps evenly spaced tokens; "attention" those with the highest attention
            from the query token, scored by this layer, which must be an attention layer.
        keep: fraction of the ORIGINAL vision tokens that remain, in (0, 1]. The count is
            trunc(N0 * keep) in float64; a count of 0 is legal.
        transfer: True adds the dropped tokens' content to the text behind the span by gated
            cross-attention (TransV); False only drops them.
        score: the stream that an attention stage scores: "raw" is the residual stream before the
            layer's RMSNorm, without rotary positions, as in TimeViper's checkpoints; "normed" is
            what the layer itself reads, and its queries and keys have the layer's positions, as in
            VideoChat-Flash. Where the stream is large, raw scores underflow to 0 and ties decide,
            so a model that is trained from random weights needs "normed". Uniform stages do not
            read it.
        spacing: how uniform stages space their tokens: "exact" truncates exact quotients
            (`tvkernels.uniform_topk`); "linspace" takes torch's linspace of integers on a CPU, as
            VideoChat-Flash does, which is one off at some lengths. Attention stages ignore it.
    """

    layer: int
    select: Selection
    keep: float
    transfer: bool = True
    score: Score = "raw"
    spacing: Spacing = "exact"

    def __post_init__(self) -> None:
        owner = "CompressionStage"
        expect(owner, self, COUNT, "layer")
        _expect_one_of(owner, "select", self.select, ("uniform", "attention"))
        expect(owner, self, RATIO, "keep")
        expect(owner, self, BOOL, "transfer")
        _expect_one_of(owner, "score", self.score, ("raw", "normed"))
        _expect_one_of(owner, "spacing", self.spacing, ("exact", "linspace"))

    def kept_count(self, vision_tokens: int) -> int:
        """Vision tokens that remain of `vision_tokens` original ones (float64, truncated)."""
        return int(vision_tokens * float(self.keep))


@dataclass(frozen=True)
class BackboneConfig:
    """The LLM: one residual per layer, each layer one mixer.

    `pattern` has one letter per layer: M Mamba-2, * attention, - MLP. `family` "nemotron_h": a
    hybrid of all three; attention has no positional encoding, the MLP is down(relu(up)^2). "qwen2":
    each of Qwen2's blocks is the two layers *-; queries and keys are rotated by their position with
    the base `rope_theta`, the MLP is down(silu(gate) * up), `attention_bias` is that of q, k and v
    only, and the fields of Mamba-2 are not read. `time_step_limit` clamps dt after softplus;
    Nemotron-H's checkpoints use no clamp. `time_step_min/max/floor` are used to initialise dt_bias
    only. `eos_token_ids` are the token ids that end an answer.
    """

    vocab_size: int = 131072
    hidden_size: int = 4480
    intermediate_size: int = 15680
    pattern: str = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
    num_attention_heads: int = 40
    num_key_value_heads: int = 8
    head_dim: int = 128
    mamba_num_heads: int = 128  # H
    mamba_head_dim: int = 80  # P
    n_groups: int = 8  # G
    ssm_state_size: int = 128  # N
    conv_kernel: int = 4
    chunk_size: int = 128  # Q
    norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    mamba_proj_bias: bool = False
    use_conv_bias: bool = True
    tie_word_embeddings: bool = False
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    max_position_embeddings: int = 131072
    eos_token_ids: tuple[int, ...] = (2,)
    family: Family = "nemotron_h"
    rope_theta: float = 0.0  # 0: no positional encoding

    def __post_init__(self) -> None:
        owner = "BackboneConfig"
        expect(
            owner, self, SIZE, "vocab_size", "hidden_size", "intermediate_size",
            "num_attention_heads", "num_key_value_heads", "head_dim", "mamba_num_heads",
            "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "chunk_size",
            "max_position_embeddings",
        )  # fmt: skip
        expect(
            owner, self, BOOL, "attention_bias", "mlp_bias", "mamba_proj_bias", "use_conv_bias",
            "tie_word_embeddings",
        )  # fmt: skip
        expect(owner, self, ABOVE_0, "norm_eps", "time_step_min", "time_step_max")
        expect(owner, self, FROM_0, "time_step_floor", "rope_theta")
        _expect_one_of(owner, "family", self.family, ("nemotron_h", "qwen2"))
        expect(owner, self, RANGE, "time_step_limit")
        expect(owner, self, IDS, "eos_token_ids")
        expect(owner, self, _PATTERN, "pattern")
        if max(self.eos_token_ids, default=0) >= self.vocab_size:
            rule = f"lie below vocab_size ({self.vocab_size})"
            fail(owner, "eos_token_ids", rule, self.eos_token_ids)
        if self.num_attention_heads % self.num_key_value_heads:
            rule = f"divide num_attention_heads ({self.num_attention_heads})"
            fail(owner, "num_key_value_heads", rule, self.num_key_value_heads)
        if self.mamba_num_heads % self.n_groups:
            fail(
                owner, "n_groups", f"divide mamba_num_heads ({self.mamba_num_heads})", self.n_groups
            )
        self._check_family()

    def _check_family(self) -> None:
        owner, of = "BackboneConfig", f"for family={self.family!r}"
        if self.family != "qwen2":
            if self.rope_theta:
                fail(owner, "rope_theta", f"be 0 {of}", self.rope_theta)
            return
        if self.pattern != "*-" * (len(self.pattern) // 2):
            fail(owner, "pattern", f"repeat *- {of}", self.pattern)
        if not self.rope_theta:
            fail(owner, "rope_theta", f"be above 0 {of}", self.rope_theta)
        if self.head_dim % 2:
            fail(owner, "head_dim", f"be even {of}", self.head_dim)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.pattern)

    @property
    def layers_per_block(self) -> int:
        """Our layers in one of the layers that the family's own config and users count."""
        return 2 if self.family == "qwen2" else 1

    def named(self, layer: int) -> str:
        """One of our layers as the family's users count: "layer 7", or "block 4" of Qwen2."""
        per = self.layers_per_block
        return f"layer {layer}" if per == 1 else f"block {layer // per}"

    @property
    def d_inner(self) -> int:
        """Channels inside a Mamba-2 mixer: heads times head dimension."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: x, B and C side by side."""
        return self.d_inner + 2 * self.n_groups * self.ssm_state_size

    def layers_of(self, letter: str) -> tuple[int, ...]:
        """Indices of the layers whose pattern letter is `letter`."""
        return tuple(i for i, kind in enumerate(self.pattern) if kind == letter)


@dataclass(frozen=True)
class VisionConfig:
    """Vision transformer whose features feed the projector.

    `kind` is the encoder: "siglip", "dinov2", "umt" or "internvideo2". The last two see a video in
    clips: every patch of `clip_frames` frames attends to every other patch of the same clip.
    `register_tokens` are DINOv2's. `feature_layer` is the block whose output is used, as an index
    into the list of blocks (negative from the end); later blocks are never built. `hidden_act` is
    "gelu" (exact, erf) or "gelu_pytorch_tanh". Images are resized by the strategy
    `resize` (video/preprocess.py names them) and scaled to [0, 1], then (pixel - mean) / std.
    """

    kind: str = "siglip"
    image_size: int = 384  # pixels per side
    patch_size: int = 14  # pixels per side
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu"
    feature_layer: int = -2
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: str = "naive"
    clip_frames: int = 1
    register_tokens: int = 0

    def __post_init__(self) -> None:
        owner = "VisionConfig"
        _expect_one_of(owner, "kind", self.kind, ("siglip", "dinov2", "umt", "internvideo2"))
        expect(
            owner, self, SIZE, "image_size", "patch_size", "hidden_size", "intermediate_size",
            "num_hidden_layers", "num_attention_heads", "clip_frames",
        )  # fmt: skip
        expect(owner, self, COUNT, "register_tokens")
        expect(owner, self, ABOVE_0, "layer_norm_eps")
        expect(owner, self, INTEGER, "feature_layer")
        expect(owner, self, TRIPLE, "image_mean")
        expect(owner, self, SCALES, "image_std")
        if self.hidden_size % self.num_attention_heads:
            rule = f"divide hidden_size ({self.hidden_size})"
            fail(owner, "num_attention_heads", rule, self.num_attention_heads)
        if self.patch_size > self.image_size:
            fail(owner, "patch_size", f"be at most image_size ({self.image_size})", self.patch_size)
        if not -self.num_hidden_layers <= self.feature_layer < self.num_hidden_layers:
            rule = f"name one of the {self.num_hidden_layers} blocks"
            fail(owner, "feature_layer", rule, self.feature_layer)
        _expect_one_of(owner, "hidden_act", self.hidden_act, ("gelu", "gelu_pytorch_tanh"))
        _expect_one_of(owner, "resize", self.resize, ("naive", "crop", "letterbox", "pillow13"))
        if self.clip_frames > 1 and self.kind not in ("umt", "internvideo2"):
            fail(owner, "clip_frames", f"be 1 for kind={self.kind!r}", self.clip_frames)
        if self.kind == "internvideo2" and self.hidden_size % 16:
            # a quarter of the channels is sines and cosines of time, the rest of row and column
            fail(
                owner,
                "hidden_size",
                "be a multiple of 16 for kind='internvideo2'",
                self.hidden_size,
            )
        if self.register_tokens and self.kind != "dinov2":
            fail(owner, "register_tokens", f"be 0 for kind={self.kind!r}", self.register_tokens)

    @property
    def patches_per_side(self) -> int:
        """Whole patches per side of a frame; pixels beyond the last one are not seen."""
        return self.image_size // self.patch_size

    @property
    def patches_per_frame(self) -> int:
        """Patch tokens of one frame."""
        return self.patches_per_side**2

    @property
    def num_blocks(self) -> int:
        """Blocks that are built: up to and including `feature_layer`."""
        return self.feature_layer % self.num_hidden_layers + 1


@dataclass(frozen=True)
class ProjectorConfig:
    """From patch features to visual tokens.

    `kind`: "gelu_mlp" projects every patch; "tome_mlp" first merges each frame's patches to
    `num_tokens` (ToMe), then projects with two linear layers; "fused_tome_mlp" merges, then
    projects with three. `clip_frames` frames are merged together into `clip_frames * num_tokens`
    tokens; an image is merged alone, into `image_tokens` (None: `num_tokens`). `token_order` sorts
    the merged tokens by how many patches they hold.
    """

    kind: str = "tome_mlp"
    num_tokens: int = 16  # tokens per frame after merging
    clip_frames: int = 1  # frames per merge
    token_order: TokenOrder = "raw"
    merge_heads: int = 16
    image_tokens: int | None = None

    def __post_init__(self) -> None:
        owner = "ProjectorConfig"
        _expect_one_of(owner, "kind", self.kind, ("gelu_mlp", "tome_mlp", "fused_tome_mlp"))
        _expect_one_of(owner, "token_order", self.token_order, ("raw", "ascending", "descending"))
        expect(owner, self, SIZE, "num_tokens", "clip_frames", "merge_heads")
        expect(owner, self, OPTIONAL_SIZE, "image_tokens")
        if self.clip_frames == 1 and self.tokens_of_image != self.num_tokens:
            rule = f"be num_tokens ({self.num_tokens}) or None, for an image is a clip of 1 frame"
            fail(owner, "image_tokens", rule, self.image_tokens)

    @property
    def tokens_of_image(self) -> int:
        """Tokens that an image is merged to."""
        return self.num_tokens if self.image_tokens is None else self.image_tokens

    @property
    def merges(self) -> bool:
        return self.kind != "gelu_mlp"


@dataclass(frozen=True)
class TimeViperConfig:
    """The whole model: the shape of each part, the stages that drop vision tokens, the chat
    template, and the defaults of asking: sampling policy, whether the model is told the video's
    length, and the penalty for repeated tokens."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    stages: tuple[CompressionStage, ...] = ()
    template: str = "nano_base"
    policy: str = "fps:1"
    mention_duration: bool = False
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        owner = "TimeViperConfig"
        expect(owner, self, instance_of(BackboneConfig), "backbone")
        expect(owner, self, instance_of(VisionConfig), "vision")
        expect(owner, self, instance_of(ProjectorConfig), "projector")
        expect(owner, self, instance_of(tuple), "stages")
        _expect_one_of(owner, "template", self.template, ("nano_base", "qwen2", "qwen_2"))
        expect(owner, self, TEXT, "policy")
        expect(owner, self, BOOL, "mention_duration")
        expect(owner, self, ABOVE_0, "repetition_penalty")
        patches = self.vision.patches_per_frame
        if self.projector.merges:
            clip, tokens = self.vision.clip_frames, self.projector.num_tokens
            if self.projector.clip_frames % clip:
                rule = f"be a multiple of vision.clip_frames ({clip})"
                fail(owner, "projector.clip_frames", rule, self.projector.clip_frames)
            for name, count in (("num", tokens), ("image", self.projector.tokens_of_image)):
                if count > patches:
                    rule = f"be at most the {patches} patches of a frame"
                    fail(owner, f"projector.{name}_tokens", rule, count)
        if self.projector.merges and self.vision.hidden_size % self.projector.merge_heads:
            rule = f"divide vision.hidden_size ({self.vision.hidden_size})"
            fail(owner, "projector.merge_heads", rule, self.projector.merge_heads)
        check_stages(self.stages, self.backbone)

    @property
    def clip_frames(self) -> int:
        """Frames that the vision encoder or the merge takes together; a video has whole clips."""
        return self.projector.clip_frames if self.projector.merges else self.vision.clip_frames

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens that one frame of a video adds to the prompt."""
        merged = self.projector.merges
        return self.projector.num_tokens if merged else self.vision.patches_per_frame

    def visual_tokens(self, frames: int) -> int:
        """Visual tokens of `frames` frames, the last clip filled up; one frame is an image."""
        if frames == 1:
            merged = self.projector.merges
            return self.projector.tokens_of_image if merged else self.vision.patches_per_frame
        return -(-frames // self.clip_frames) * self.clip_frames * self.tokens_per_frame


def check_stages(stages: tuple[CompressionStage, ...], backbone: BackboneConfig) -> None:
    """Check that stages fit the backbone: layers exist and rise strictly, keep ratios never rise.

    Raises:
        ValueError: naming the stage, the rule and the value.
    """
    layer_before, keep_before = -1, 1.0
    per = backbone.layers_per_block
    unit = "layer" if per == 1 else "block"
    for i, stage in enumerate(stages):
        owner, last = f"stages[{i}]", backbone.num_hidden_layers - 1
        if not isinstance(stage, CompressionStage):
            fail("", owner, "be a CompressionStage", stage)
        if stage.layer % per:
            fail(owner, "layer", f"be a multiple of {per}, the layers of a block", stage.layer)
        if stage.layer > last:
            fail(owner, unit, f"be at most {last // per}, the last {unit}", stage.layer // per)
        if stage.layer <= layer_before:
            rule = f"lie behind the stage before it ({backbone.named(layer_before)})"
            fail(owner, unit, rule, stage.layer // per)
        if stage.keep > keep_before:
            fail(owner, "keep", f"not exceed the stage before it ({keep_before})", stage.keep)
        if stage.select == "attention" and backbone.pattern[stage.layer] != ATTENTION:
            layers = ", ".join(map(str, backbone.layers_of(ATTENTION)))
            rule = f"be an attention layer ({layers or 'there is none'}) for select='attention'"
            fail(owner, "layer", rule, f"{stage.layer} ({backbone.pattern[stage.layer]})")
        layer_before, keep_before = stage.layer, stage.keep
