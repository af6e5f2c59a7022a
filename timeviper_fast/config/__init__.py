"""The model's shape in frozen dataclasses: every field with its unit, every rule checked once.

backbone.py  the LLM
stage.py     where vision tokens are dropped inside the LLM
vision.py    the vision encoder, and the projector behind it
model.py     the whole model, and the defaults of asking it

Sizes are counts of channels, heads or layers unless said otherwise. Paper letters follow Mamba-2
(arXiv 2405.21060): H heads, P head dimension, N state size, G groups, Q chunk length. Other
projects' names of these fields appear in `checkpoint/` only.
"""

from timeviper_fast.config.backbone import ATTENTION, EXPERTS, MAMBA, MLP, BackboneConfig
from timeviper_fast.config.model import TimeViperConfig
from timeviper_fast.config.stage import CompressionStage, Match, Selection, check_stages
from timeviper_fast.config.vision import ProjectorConfig, VisionConfig

__all__ = [
    "ATTENTION",
    "EXPERTS",
    "MAMBA",
    "MLP",
    "BackboneConfig",
    "CompressionStage",
    "Match",
    "ProjectorConfig",
    "Selection",
    "TimeViperConfig",
    "VisionConfig",
    "check_stages",
]
