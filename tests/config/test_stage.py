"""Compression stages: every broken rule has its sentence, and counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from timeviper_fast.config import CompressionStage, check_stages
from timeviper_fast.presets import LLM_PRESETS, preset

TINY = preset("tiny")
QWEN2 = LLM_PRESETS["qwen2-7b"]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CompressionStage(3, "uniform", 0), r"keep must lie in \(0, 1\], got 0"),
        (lambda: CompressionStage(3, "uniform", 1.5), r"keep must lie in \(0, 1\], got 1.5"),
        (lambda: CompressionStage(3, "uniform", float("nan")), r"keep must lie in .* got nan"),
        (lambda: CompressionStage(-1, "uniform", 0.5), "layer must be an integer of 0 .* got -1"),
        (lambda: CompressionStage(3, "uniform", True), r"keep must lie in \(0, 1\], got True"),
        (lambda: CompressionStage(3, "uniform", 0.5, "no"), "transfer must be True or .* got 'no'"),
        (
            lambda: CompressionStage(3, "random", 0.5),
            "select must be one of 'uniform', 'attention'",
        ),
        (
            lambda: replace(TINY, stages=(CompressionStage(12, "uniform", 0.5),)),
            r"stages\[0\]: layer must be at most 11, the last layer, got 12",
        ),
        (
            lambda: replace(TINY, stages=(CompressionStage(5, "attention", 0.5),)),
            r"stages\[0\]: layer must be an attention layer \(3, 8\) .* got '5 \(M\)'",
        ),
        (
            lambda: replace(TINY, stages=(CompressionStage(5, "uniform", 0.5),) * 2),
            r"stages\[1\]: layer must lie behind the stage before it \(layer 5\), got 5",
        ),
        (
            lambda: replace(
                TINY,
                stages=(CompressionStage(2, "uniform", 0.2), CompressionStage(5, "uniform", 0.5)),
            ),
            r"stages\[1\]: keep must not exceed the stage before it \(0.2\), got 0.5",
        ),
        (
            lambda: check_stages((CompressionStage(3, "uniform", 0.5),), QWEN2),
            r"stages\[0\]: layer must be a multiple of 2, the layers of a block, got 3",
        ),
        (
            lambda: CompressionStage(2, "uniform", 0.5, spacing="floor"),
            "spacing must be one of 'exact', 'linspace', got 'floor'",
        ),
        (
            lambda: replace(TINY, stages=(3,)),
            r"stages\[0\] must be a CompressionStage, got 3",
        ),
    ],
)
def test_sentences(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_keep_counts_are_float64_and_may_be_zero():
    # 45 frames x 16 tokens at 0.7: float32 would say 504
    assert CompressionStage(1, "uniform", 0.7).kept_count(720) == 503
    assert CompressionStage(1, "uniform", 0.29).kept_count(100) == 28
    assert CompressionStage(1, "uniform", 0.1).kept_count(9) == 0
