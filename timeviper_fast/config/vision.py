"""The shapes of the vision encoder and of the projector behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from timeviper_fast.errors import (
    ABOVE_0,
    COUNT,
    INTEGER,
    OPTIONAL_SIZE,
    SCALES,
    SIZE,
    TRIPLE,
    Kind,
    expect,
    expect_one_of,
    fail,
    is_integer,
)

__all__ = ["ProjectorConfig", "VisionConfig"]

TokenOrder = Literal["raw", "ascending", "descending"]

_KINDS = ("siglip", "dinov2", "umt", "internvideo2", "radio")
_RESIZES = ("naive", "crop", "letterbox", "pillow13", "float", "float_aspect")
_GRID = Kind(
    "be None or a pair of even integers above 0",
    lambda v: (
        v is None
        or (
            isinstance(v, tuple)
            and len(v) == 2
            and all(is_integer(side) and side > 0 and side % 2 == 0 for side in v)
        )
    ),
)
_PROJECTORS = ("gelu_mlp", "tome_mlp", "fused_tome_mlp", "pixel_shuffle_mlp")


@dataclass(frozen=True)
class VisionConfig:
    """Vision transformer whose features feed the projector.

    `kind` is the encoder: "siglip", "dinov2", "umt", "internvideo2" or "radio". "umt" and
    "internvideo2" see a video in clips: every patch of `clip_frames` frames attends to every other
    patch of the same clip. "radio" embeds the same place of `clip_frames` frames as one patch.
    `register_tokens` are DINOv2's registers, or all tokens in front of RADIO's patches.
    `position_side` is the number of positions per side of RADIO's table. `feature_layer` is the
    block whose output is used, as an index into the list of blocks (negative from the end); later
    blocks are never built. `hidden_act` is "gelu" (exact, erf) or "gelu_pytorch_tanh". Images are
    resized by the strategy `resize` (video/preprocess.py names them) and scaled to [0, 1], then
    (pixel - mean) / std. With "float_aspect" a frame keeps its aspect and has about as many patches
    as a square of `image_size` pixels; `frame_grid` is then the rows and columns of patches of the
    frames at hand, which `seeing` sets.
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
    position_side: int = 0
    frame_grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        owner = "VisionConfig"
        expect_one_of(owner, "kind", self.kind, _KINDS)
        expect(
            owner, self, SIZE, "image_size", "patch_size", "hidden_size", "intermediate_size",
            "num_hidden_layers", "num_attention_heads", "clip_frames",
        )  # fmt: skip
        expect(owner, self, COUNT, "register_tokens", "position_side")
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
        expect_one_of(owner, "hidden_act", self.hidden_act, ("gelu", "gelu_pytorch_tanh"))
        expect_one_of(owner, "resize", self.resize, _RESIZES)
        self._check_kind()

    def _check_kind(self) -> None:
        owner = "VisionConfig"
        if self.clip_frames > 1 and self.kind in ("siglip", "dinov2"):
            fail(owner, "clip_frames", f"be 1 for kind={self.kind!r}", self.clip_frames)
        if self.kind == "internvideo2" and self.hidden_size % 16:
            # a quarter of the channels is sines and cosines of time, the rest of row and column
            fail(
                owner,
                "hidden_size",
                "be a multiple of 16 for kind='internvideo2'",
                self.hidden_size,
            )
        if self.register_tokens and self.kind not in ("dinov2", "radio"):
            fail(owner, "register_tokens", f"be 0 for kind={self.kind!r}", self.register_tokens)
        if bool(self.position_side) != (self.kind == "radio"):
            rule = f"be {'above 0' if self.kind == 'radio' else '0'} for kind={self.kind!r}"
            fail(owner, "position_side", rule, self.position_side)
        if self.kind == "radio" and self.image_size % self.patch_size:
            rule = f"be a multiple of patch_size ({self.patch_size}) for kind='radio'"
            fail(owner, "image_size", rule, self.image_size)
        if self.resize == "float_aspect" and self.kind != "radio":
            fail(owner, "kind", "be 'radio' for resize='float_aspect'", self.kind)
        expect(owner, self, _GRID, "frame_grid")
        if self.frame_grid and self.resize != "float_aspect":
            fail(owner, "frame_grid", f"be None for resize={self.resize!r}", self.frame_grid)

    def seeing(self, height: int, width: int) -> VisionConfig:
        """This encoder for frames of that size in pixels; itself where all frames become a square.

        For N patches in a square of `image_size` the grid has round(sqrt(N h / w)) rows and
        round(sqrt(N w / h)) columns, halves to even. Odd sides grow to the next even number if the
        grid then has at most N patches; otherwise they shrink.
        """
        if self.resize != "float_aspect":
            return self
        target = self.patches_per_side**2
        sides = [round(math.sqrt(target * r)) for r in (height / width, width / height)]
        grown = [side + side % 2 for side in sides]
        if math.prod(grown) > target:
            grown = [side - side % 2 for side in sides]
        rows, columns = (max(side, 2) for side in grown)
        return replace(self, frame_grid=(rows, columns))

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame that is encoded, in pixels.

        Raises:
            ValueError: frames keep their aspect, and `seeing` has not been told their size.
        """
        if self.resize != "float_aspect":
            return self.image_size, self.image_size
        if self.frame_grid is None:
            rule = "be known where frames keep their aspect (resize='float_aspect')"
            fail("VisionConfig", "frame_grid", rule, None, "take config.seeing(height, width)")
        rows, columns = self.frame_grid
        return rows * self.patch_size, columns * self.patch_size

    @property
    def patches_per_side(self) -> int:
        """Whole patches per side of a frame; pixels beyond the last one are not seen."""
        return self.image_size // self.patch_size

    @property
    def patches_per_frame(self) -> int:
        """Patch tokens of one frame; those of a square frame before `seeing`."""
        return math.prod(self.frame_grid or (self.patches_per_side,) * 2)

    @property
    def frames_per_patch(self) -> int:
        """Frames of a video that one patch token holds."""
        return self.clip_frames if self.kind == "radio" else 1

    @property
    def num_blocks(self) -> int:
        """Blocks that are built: up to and including `feature_layer`."""
        return self.feature_layer % self.num_hidden_layers + 1


@dataclass(frozen=True)
class ProjectorConfig:
    """From patch features to visual tokens.

    `kind`: "gelu_mlp" projects every patch; "tome_mlp" first merges each frame's patches to
    `num_tokens` (ToMe), then projects with two linear layers; "fused_tome_mlp" merges, then
    projects with three; "pixel_shuffle_mlp" joins 2 x 2 neighbouring patches, channels side by
    side, normalises them and projects with two linear layers, with `inner_size` channels between
    them. The other fields are those of merging, which "gelu_mlp" and "pixel_shuffle_mlp" do not
    read: `clip_frames` frames are merged together into `clip_frames * num_tokens`
    tokens; an image is merged alone, into `image_tokens` (None: `num_tokens`). `token_order` sorts
    the merged tokens by how many patches they hold.
    """

    kind: str = "tome_mlp"
    num_tokens: int = 16  # tokens per frame after merging
    clip_frames: int = 1  # frames per merge
    token_order: TokenOrder = "raw"
    merge_heads: int = 16
    image_tokens: int | None = None
    inner_size: int = 0

    def __post_init__(self) -> None:
        owner = "ProjectorConfig"
        expect_one_of(owner, "kind", self.kind, _PROJECTORS)
        expect_one_of(owner, "token_order", self.token_order, ("raw", "ascending", "descending"))
        expect(owner, self, SIZE, "num_tokens", "clip_frames", "merge_heads")
        expect(owner, self, OPTIONAL_SIZE, "image_tokens")
        expect(owner, self, COUNT, "inner_size")
        if bool(self.inner_size) != self.shuffles:
            rule = f"be {'above 0' if self.shuffles else '0'} for kind={self.kind!r}"
            fail(owner, "inner_size", rule, self.inner_size)
        if self.clip_frames == 1 and self.tokens_of_image != self.num_tokens:
            rule = f"be num_tokens ({self.num_tokens}) or None, for an image is a clip of 1 frame"
            fail(owner, "image_tokens", rule, self.image_tokens)

    @property
    def tokens_of_image(self) -> int:
        """Tokens that an image is merged to."""
        return self.num_tokens if self.image_tokens is None else self.image_tokens

    @property
    def merges(self) -> bool:
        """Whether similar patches are merged (ToMe)."""
        return self.kind in ("tome_mlp", "fused_tome_mlp")

    @property
    def shuffles(self) -> bool:
        """Whether 2 x 2 neighbouring patches become one token."""
        return self.kind == "pixel_shuffle_mlp"

    @property
    def patches_per_token(self) -> int:
        """Neighbouring patches whose channels stand side by side in one token."""
        return 4 if self.shuffles else 1
