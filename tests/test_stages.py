"""Stages in words: what each form means, and that the LLM's own blocks are counted."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from timeviper_fast.config import CompressionStage
from timeviper_fast.presets import preset
from timeviper_fast.stages import parse_stages

QWEN2 = preset("videochat-flash-7b-448")
NANO = preset("nemotron-nano-9b-v2")


def drop(
    layer: int, select: Any, keep: float, score: Any = "normed", spacing: Any = "linspace"
) -> Any:
    return CompressionStage(layer, select, keep, transfer=False, score=score, spacing=spacing)


def test_the_recommended_rule_of_videochat_flash_counts_qwen2s_blocks() -> None:
    stages = parse_stages("uniform0_attention", QWEN2)
    assert stages == (drop(8, "uniform", 0.75), drop(36, "attention", 0.25))
    assert parse_stages("uniform:4:0.75, attention:18:.25:normed", QWEN2) == stages


def test_the_defaults_of_pyramiddrop() -> None:
    at = [(8, 0.5), (16, 0.25), (24, 0.125)]
    want = tuple(drop(2 * block, "attention", keep) for block, keep in at)
    assert parse_stages("pyramiddrop", QWEN2) == want


def test_other_llms_count_our_layers() -> None:
    stages = parse_stages("uniform:7:0.5,attention:39:0.1:raw", NANO)
    assert stages[0] == drop(7, "uniform", 0.5, spacing="exact")
    assert stages[1] == drop(39, "attention", 0.1, "raw", "exact")


def test_timeviper_on_qwen2_counts_blocks_and_spaces_exactly() -> None:
    stages = parse_stages("uniform:4:0.75", preset("timeviper-qwen2.5-7b"))
    assert stages == (drop(8, "uniform", 0.75, spacing="exact"),)


def test_no_stages_and_stages_that_are_built() -> None:
    assert parse_stages("none", QWEN2) == parse_stages((), QWEN2) == ()
    built = (CompressionStage(39, "attention", 0.2, transfer=False),)
    assert parse_stages(list(built), NANO) == built


def test_a_content_stage_stands_before_the_llm() -> None:
    """It compares merged tokens with their best match, and others with the same place."""

    def content(prune: float, match: Any) -> CompressionStage:
        return CompressionStage(0, "content", 1.0, transfer=False, prune=prune, match=match)

    assert parse_stages("content:0.7", NANO) == (content(0.7, "best"),)
    whole = replace(NANO, stages=(), projector=replace(NANO.projector, kind="gelu_mlp"))
    assert parse_stages("content:0.7", whole) == (content(0.7, "place"),)
    stages = parse_stages("content:0.9, uniform:4:0.75,attention:18:0.25:normed", QWEN2)
    assert stages == (content(0.9, "best"), *parse_stages("uniform0_attention", QWEN2))
    assert parse_stages("content:0.7,own", NANO) == (content(0.7, "best"), *NANO.stages)
    assert parse_stages("own", NANO) == NANO.stages


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("attention:18:0.25", "must say which stream attention scores, raw or normed, as"),
        ("attention:18:0.25:both", "raw or normed, as attention:18:0.25:normed, got 'attention"),
        ("hico", "stages must be none, uniform0_attention, pyramiddrop, or a list as uniform:4"),
        ("uniform:4", "must be none, .*, got 'uniform:4'"),
        ("uniform:4:0.75:normed", "must be none, .*, got 'uniform:4:0.75:normed'"),
        ("uniform:four:0.75", "must be none, .*, got 'uniform:four:0.75'"),
        ("uniform:0:0.75", "stages 'uniform:0:0.75' must stand before one of the blocks 1 to 27"),
        ("uniform:28:0.75", "must stand before one of the blocks 1 to 27, got 28"),
        ("uniform:4:1.5", r"stages 'uniform:4:1.5': keep must lie in \(0, 1\], got 1.5"),
        ("uniform:18:0.5,uniform:4:0.2", r"\]: block must .* before it \(block 18\), got 4"),
        ("uniform:4:0.5,uniform:18:0.7", r"stages\[1\]: keep must not exceed the stage before it"),
        ("content:1", r"stages 'content:1' must remove a share that can lie in \[0, 1\), got 1.0"),
        ("content:much", "must be none, .* or content:0.7,own, got 'content:much'"),
        ("content:0:0.7", "must be none, .* or content:0.7,own, got 'content:0:0.7'"),
        ("uniform:4:0.75,content:0.7", r"stages\[1\]: content must stand in the first stage alone"),
        (7, "stages must be text .* or a tuple of CompressionStage, got 7"),
    ],
)
def test_mistakes(text: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_stages(text, QWEN2)


def test_attention_stages_stand_before_attention() -> None:
    words = "stages 'attention:7:0.5:raw': stages[0]: layer must be an attention layer (14, 21"
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_stages("attention:7:0.5:raw", NANO)
    with pytest.raises(ValueError, match=r"stages\[0\]: layer must be a multiple of 2"):
        parse_stages((CompressionStage(5, "uniform", 0.5, transfer=False),), QWEN2)
    with pytest.raises(ValueError, match=r"\]: block must be at most 27, the last block, got 28"):
        parse_stages((CompressionStage(56, "uniform", 0.5, transfer=False),), QWEN2)
