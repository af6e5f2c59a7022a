"""The window counts the tokens that reach attention."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.inference.common import CONFIG, build, prompt
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.generate import prefill
from timeviper_fast.layout import Segment, VisualSpan


def test_the_window_counts_what_reaches_attention():
    model = build(
        (CompressionStage(2, "uniform", 0.1),), replace(CONFIG, max_position_embeddings=32)
    )
    segment = Segment(104, VisualSpan(2, 100))
    prefill(model, prompt(104), segment, max_new_tokens=18)
    with pytest.raises(
        ValueError,
        match=r"window of 32 tokens, got 14 at its attention layers \(of 104 in the prompt\) \+ 19",
    ):
        prefill(model, prompt(104), segment, max_new_tokens=19)
