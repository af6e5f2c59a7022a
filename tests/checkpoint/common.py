"""Names that a part expects."""

from __future__ import annotations

import torch

from tests.tiny import TINY
from timeviper_fast.model.nemotron_h import HybridBackbone


def expected_names(stages) -> set[str]:
    with torch.device("meta"):
        return set(HybridBackbone(TINY, stages).state_dict())
