"""VideoChat-Flash's template against that project's prompts, and what its fields say."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.goldens import manifest
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.text.prompt import build_prompt, render_chat, training_prompt, vision_preface
from timeviper_fast.text.template import TEMPLATES, chat_template

GOLDEN = manifest("vcf_prompts")
TOKENIZER = byte_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
SENTENCE = "The video lasts for 10.00 seconds, and 64 frames are uniformly sampled from it. "


def messages_of(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": role, "content": text or ""} for role, text in row["messages"]]


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: row["name"])
def test_text_and_ids_are_those_of_videochat_flash(row: dict[str, Any]) -> None:
    assert render_chat(messages_of(row), "qwen_2") == row["prompt"]
    places = row["placeholders"]
    prompt = build_prompt(
        TOKENIZER, messages_of(row), template="qwen_2", vision=bool(places),
        placeholder="<image>", runs=max(len(places), 1),
    )  # fmt: skip
    assert prompt.text == row["prompt"]
    mark = [GOLDEN["image_placeholder"]]
    parts = [prompt.before, *prompt.between, prompt.after]
    parts = parts if places else [prompt.after]
    assert sum((mark + part for part in parts[1:]), parts[0]) == row["ids"]
    assert prompt.length(len(places)) == len(row["ids"])
    if places:
        span = prompt.span(len(places))
        assert (span.start, span.stop) == (places[0], places[-1] + 1)


def test_a_question_needs_no_mark_for_the_vision_tokens() -> None:
    row = GOLDEN["rows"][0]
    how = {"template": "qwen_2", "preface": vision_preface("qwen_2", 10, 64)}
    prompt = build_prompt(TOKENIZER, "Describe this video in detail.", **how)
    assert prompt.text == row["prompt"]
    assert [*prompt.before, -200, *prompt.after] == row["ids"]


def test_what_stands_between_vision_and_question() -> None:
    assert vision_preface("qwen_2", 10, 64) == f"\n{SENTENCE}"
    assert vision_preface("qwen_2") == "\n"
    assert vision_preface("qwen2") == vision_preface("nano_base") == ""
    # two decimals always, half to even as Python's format; TimeViper's drop trailing zeros
    assert "for 3603.60 seconds" in vision_preface("qwen_2", 3603.6036, 512)
    assert "for 3603.6 seconds" in vision_preface("qwen2", 3603.6036, 512)


def test_empty_answers_before_the_last_turn_are_upstreams_open_turns_alone() -> None:
    turns = [("user", "Hi"), ("assistant", ""), ("user", "Again")]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert "assistant\n<|im_start|>user\nAgain" in render_chat(messages, "qwen_2")
    for template in TEMPLATES.keys() - {"qwen_2"}:
        with pytest.raises(ValueError, match="answer must not be empty before the last turn"):
            render_chat(messages, template)
    # training learns nothing from an answer that is not there
    answered = [*messages, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(ValueError, match="answer must not be empty before the last turn"):
        training_prompt(TOKENIZER, answered, template="qwen_2")


@pytest.mark.parametrize(
    ("text", "runs", "words"),
    [
        ("<image> and?", 2, "a place in the question for each of their 2 runs, got 1 places"),
        ("<image><image><image>?", 2, "for each of their 2 runs, got 3 places"),
        ("What?", 2, "for each of their 2 runs, got 0 places"),
        ("What?", 0, "runs must be an integer of 1 or more, got 0"),
    ],
)
def test_places_are_counted(text: str, runs: int, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        build_prompt(TOKENIZER, text, template="qwen_2", placeholder="<image>", runs=runs)
    touching = build_prompt(TOKENIZER, "<image><image>?", placeholder="<image>", runs=2)
    assert touching.between == [[]]


def test_unknown_template() -> None:
    with pytest.raises(ValueError, match=r"template must be one of .*'qwen_2', got 'qwen3'"):
        chat_template("qwen3")
