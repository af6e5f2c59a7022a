"""A view of a model in which text does not see vision from a layer on.

The paper (arXiv 2511.16595, eq. 3 and 4) blocks vision to instruction (V2I) and vision to response
(V2R) in attention layers alone; Mamba-2 layers go on mixing there. Here they can be blocked, too.
Text rows that enter the first blocked layer hold vision from the layers before it: the curve over
that layer shows where the model no longer needs vision itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from timeviper_fast.analysis.blocked_layers import (
    GRADES,
    BlockedAttention,
    BlockedMamba,
    BlockedTransV,
)
from timeviper_fast.analysis.labels import INSTRUCTION, RESPONSE, Labels
from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import BOOL, COUNT, expect, fail
from timeviper_fast.layout import Segment
from timeviper_fast.model.attention import Attention
from timeviper_fast.model.cache import HybridCache
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.model.nemotron_h import HybridBackbone, Mamba2
from timeviper_fast.model.stack import Packing, Passage
from timeviper_fast.model.transv import StageRecord, TransV

__all__ = ["BlockedBackbone", "Blocking", "blocked", "blocked_backbone"]

Network = TypeVar("Network", bound=TimeViperNetwork)
_ROWS = (INSTRUCTION, RESPONSE)


@dataclass(frozen=True)
class Blocking:
    """Which rows do not see vision, from which layer on, and how.

    Attributes:
        rows: ("instruction",) is V2I: all text of the prompt; ("response",) is V2R: the answer's
            tokens; or both.
        from_layer: the first blocked layer; the number of layers blocks nothing.
        grade: how Mamba-2 layers are blocked. None: not at all, as in the paper. "edge": the
            scan's weights from vision to blocked rows are 0 (x of vision is 0), the analogue of
            an attention mask; the convolution still shows them the last few vision tokens.
            "edge+conv": vision does not enter the convolution either; its steps still fade what
            stands in front of it. "absent": convolution and scan of a sequence without vision.
        transfer: whether stages from `from_layer` on transfer nothing into blocked rows. What the
            stages keep is chosen as ever.

    Raises:
        ValueError: a value breaks its rule.
    """

    rows: tuple[str, ...] = (INSTRUCTION,)
    from_layer: int = 0
    grade: str | None = "edge"
    transfer: bool = True

    def __post_init__(self) -> None:
        known = isinstance(self.rows, tuple) and self.rows and set(self.rows) <= set(_ROWS)
        if not known:
            fail("Blocking", "rows", f"be a tuple of {' and '.join(_ROWS)}", self.rows)
        expect("Blocking", self, COUNT, "from_layer")
        expect("Blocking", self, BOOL, "transfer")
        if self.grade not in (None, *GRADES):
            fail("Blocking", "grade", f"be None or one of {', '.join(GRADES)}", self.grade)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "rows": list(self.rows)}


def blocked(model: Network, blocking: Blocking) -> Network:
    """A view of a model, on the same weights, in which vision is blocked; `model` is not touched.

    The view is used as the model: `view.open(video)`, `view.ask(video, question)`,
    `view.generate(...)`. A session has to be opened by the view, because a blocked Mamba-2 layer
    keeps a second state from the first vision token on; one of another model is refused when it
    is asked. An answer's tokens are those that are decoded, or, in a pass without a cache, those
    behind the segment's query. In a conversation earlier answers are a part of the prompt.

    Cost: a second scan and state for each blocked Mamba-2 layer, and masked attention of the
    blocked rows.

    Raises:
        ValueError: `from_layer` is above the number of layers, or `model` is such a view.
        NotImplementedError: when it is used with packed samples, or with a stream that forgets.
    """
    view = cast(Network, model.with_stages(model.backbone.stages))
    view._modules["backbone"] = blocked_backbone(model.backbone, blocking)
    return view


def blocked_backbone(backbone: HybridBackbone, blocking: Blocking) -> BlockedBackbone:
    """The same of a language model alone."""
    count = len(backbone.layers)
    if blocking.from_layer > count:
        fail("blocked", "from_layer", f"be at most {count}, the layers", blocking.from_layer)
    if isinstance(backbone, BlockedBackbone):
        fail("blocked", "model", "be one in which nothing is blocked", "a blocked one")
    view = backbone.with_stages(backbone.stages)
    view.__class__ = BlockedBackbone
    assert isinstance(view, BlockedBackbone)
    view.blocking, view.labels = blocking, Labels(blocking.rows)
    layers = enumerate(backbone.layers)
    view.layers = nn.ModuleList([_blocked_layer(i, layer, view) for i, layer in layers])
    view.block_stages()
    return view


def _blocked_layer(number: int, layer: nn.Module, backbone: BlockedBackbone) -> nn.Module:
    """A view of a layer whose mixer is blocked; the layer itself if it is not to be."""
    mixer, grade = layer.mixer, backbone.blocking.grade
    if number < backbone.blocking.from_layer:
        return layer
    other: nn.Module
    if isinstance(mixer, Attention):
        other = _view(mixer, BlockedAttention)
    elif isinstance(mixer, Mamba2) and grade is not None:
        other = _view(mixer, BlockedMamba)
        other.grade = grade  # type: ignore[assignment]
    else:
        return layer
    other.layer, other.labels = number, backbone.labels  # type: ignore[assignment]
    view = copy.copy(layer)
    view._modules = {**layer._modules, "mixer": other}
    return view


def _view(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A copy on the same parameters that computes as `kind`, a subclass of its class."""
    view = copy.copy(module)
    view.__class__ = kind
    return view


class BlockedBackbone(HybridBackbone):
    """A language model whose passes are labelled for its blocked layers."""

    blocking: Blocking
    labels: Labels

    def block_stages(self) -> None:
        """Make the stages tell the labels what they keep; they are this model's own copies."""
        for module in cast("list[TransV]", self.transv):
            module.__class__ = BlockedTransV
            assert isinstance(module, BlockedTransV)
            module.labels = self.labels
            late = module.stage.layer >= self.blocking.from_layer
            module.closed = self.blocking.transfer and late

    def set_stages(self, stages: tuple[CompressionStage, ...]) -> None:
        super().set_stages(stages)
        self.block_stages()

    def forward(
        self,
        hidden: Tensor,
        segments: tuple[Segment, ...] | None = None,
        cache: HybridCache | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, list[list[StageRecord]]]:
        if cache is None or any(segment.vision_tokens for segment in segments or ()):
            return super().forward(hidden, segments, cache, *args, **kwargs)
        # prompts pass `run`; text that continues a cache through all layers is the answer
        with self.labels.answering():
            return super().forward(hidden, segments, cache, *args, **kwargs)

    def run(
        self,
        hidden: Tensor,
        segments: tuple[Segment, ...] | None = None,
        *,
        cache: HybridCache | None = None,
        **kwargs: Any,
    ) -> Passage:
        with self.labels.reading(hidden.shape[1], segments, cache):
            return super().run(hidden, segments, cache=cache, **kwargs)

    def _step(
        self,
        layers: range,
        packing: Packing,
        cache: HybridCache | None,
        on_pass: Callable[[int], None] | None,
        x: Tensor,
    ) -> Tensor:
        out = super()._step(layers, packing, cache, on_pass, x)
        self.labels.passed(x.shape[1])
        return out
