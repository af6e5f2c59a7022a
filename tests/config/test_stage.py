"""Compression stages: every broken rule has its sentence, and counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from timeviper_fast.config import CompressionStage, check_stages
from timeviper_fast.presets import LLM_PRESETS, preset

TINY = preset("tiny")
QWEN2 = LLM_PRESETS["qwen2-7b"]
CONTENT = CompressionStage(0, "content", 1.0, transfer=False, prune=0.5)


def content(layer=0, keep=1.0, transfer=False, prune=0.7, match="place"):
    return CompressionStage(layer, "content", keep, transfer=transfer, prune=prune, match=match)


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
            "select must be one of 'uniform', 'attention', 'content'",
        ),
        (
            lambda: CompressionStage(3, "uniform", 0.5, prune=0.5),
            "prune must be 0 except for select='content', got 0.5",
        ),
        (lambda: content(prune=1.0), r"prune must lie in \[0, 1\), got 1.0"),
        (lambda: content(layer=3), "layer must be 0 for select='content', got 3"),
        (lambda: content(keep=0.3), "keep must be 1 .* got 0.3; set the share to remove, prune"),
        (lambda: content(transfer=True), "transfer must be False for select='content', got True"),
        (lambda: content(match="worst"), "match must be one of 'place', 'best', got 'worst'"),
        (
            lambda: replace(TINY, stages=(content(),)),
            "stages must have match='best' in a content stage: merged tokens have no fixed place",
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
            lambda: replace(TINY, stages=(CompressionStage(2, "uniform", 0.5), CONTENT)),
            r"stages\[1\]: content must stand in the first stage alone .*, got 'stage 1'",
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


@pytest.mark.parametrize(
    ("frames", "each", "prune", "kept"),
    [
        (6, 16, 0.75, 24),
        (3, 4, 0.9, 4),
        (1, 16, 0.7, 16),
        (0, 16, 0.7, 0),
        # 1 - 0.7 is 0.30000000000000004
        (10, 1, 0.7, 3),
        # 1 - 0.9 is 0.09999999999999998, so that 19 of 200 tokens stay and not 20
        (20, 10, 0.9, 19),
        (2, 64, 0.0, 128),
    ],
)
def test_content_stages_count_by_what_they_remove(frames, each, prune, kept):
    assert content(prune=prune).kept_count(frames * each, each) == kept
