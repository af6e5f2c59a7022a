"""VideoChat-Flash's template against that project's prompts, and what its fields say."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.goldens import manifest
from tests.text.common import VISION
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.text.prompt import (
    build_prompt,
    render_chat,
    stop_token_ids,
    training_prompt,
    vision_preface,
)
from timeviper_fast.text.template import TEMPLATES, chat_template

GOLDEN = manifest("vcf_prompts")
TOKENIZER = byte_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
MARKED = byte_tokenizer(("</s>", "<img>", "</img>"))
SENTENCE = "The video lasts for 10.00 seconds, and 64 frames are uniformly sampled from it. "


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


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
    with pytest.raises(ValueError, match=r"template must be one of .*'qwen_2', .*, got 'qwen3'"):
        chat_template("qwen3")


def text_of(messages: Any, template: str = "nemotron_vl", **options: Any) -> str:
    return build_prompt(VISION, messages, template=template, vision=False, **options).text


def test_nemotron_vl_is_written_as_its_own_template_does() -> None:
    answer = "<SPECIAL_11>Assistant\n<think></think>"
    asked = "<SPECIAL_11>User\nWhat?\n"
    assert text_of("What?") == f"<s><SPECIAL_10>System\n\n{asked}{answer}"
    told = [{"role": "system", "content": " Be brief. /no_think "}, user("What?")]
    assert text_of(told) == f"<s><SPECIAL_10>System\nBe brief.\n{asked}{answer}"
    again = [*told, assistant("A train."), user(" And /no_think then? ")]
    between = "<SPECIAL_11>Assistant\nA train.\n<SPECIAL_12>\n<SPECIAL_11>User\nAnd  then?\n"
    assert text_of(again) == f"<s><SPECIAL_10>System\nBe brief.\n{asked}{between}{answer}"
    # a tokenizer without a beginning of text has none
    assert build_prompt(MARKED, "What?", template="nemotron_vl").text.startswith("<SPECIAL_10>")


def test_nemotron_omni_is_chatml() -> None:
    turns = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    empty = "<|im_start|>system\n<|im_end|>\n"
    assert text_of("What?", "nemotron_omni") == f"{empty}{turns}<think></think>"
    assert text_of("What?", "nemotron_omni", think=True) == f"{empty}{turns}<think>\n"


@pytest.mark.parametrize(
    ("said", "think", "thinks"),
    [
        ("What?", None, False),
        ("What?", True, True),
        ("What? /think", None, True),
        ("/think What? /no_think", None, False),
        ("What? /think", False, False),
        ("What? /no_think", True, True),
    ],
)
def test_the_argument_decides_whether_it_thinks_then_the_last_switch_in_the_text(
    said: str, think: bool | None, thinks: bool
) -> None:
    prompt = build_prompt(VISION, said, template="nemotron_vl", think=think)
    assert prompt.thinks == thinks
    assert prompt.text.endswith("<think>\n" if thinks else "<think></think>")
    assert "/think" not in prompt.text.replace("</think>", "")


def test_a_picture_has_marks_and_a_video_its_lead() -> None:
    picture = build_prompt(VISION, "What?", template="nemotron_vl")
    assert picture.text.endswith(
        "User\n<img><image></img>\nWhat?\n<SPECIAL_11>Assistant\n<think></think>"
    )
    assert VISION.decode(picture.before).endswith("User\n<img>")
    assert VISION.decode(picture.after).startswith("</img>\nWhat?")
    video = build_prompt(VISION, "What?", template="nemotron_vl", video=True)
    assert VISION.decode(video.before).endswith("User\nThis is a video:\n")
    assert VISION.decode(video.after).startswith("</img>\nWhat?")


def test_marks_and_think_tags_that_users_write_are_words() -> None:
    prompt = build_prompt(VISION, "Is <img> a <think> tag, </img>?", template="nemotron_vl")
    marks = [VISION.convert_tokens_to_ids(mark) for mark in ("<img>", "</img>")]
    assert [sum(ids.count(mark) for mark in marks) for ids in (prompt.before, prompt.after)] == [
        1,
        1,
    ]


def test_what_ends_an_answer() -> None:
    ends = VISION.convert_tokens_to_ids(["</s>", "<SPECIAL_12>", "<|im_end|>"])
    assert set(stop_token_ids(VISION, "nemotron_vl")) == {ends[0], ends[1]}
    assert set(stop_token_ids(VISION, "nemotron_omni")) == {ends[0], ends[2]}


@pytest.mark.parametrize(
    ("messages", "template", "options", "words"),
    [
        ("What?", "qwen2", {"think": True}, "think must be left out for a model whose template"),
        ([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], "qwen2", {},
         "messages must begin with the user's"),
        ([{"role": "system", "content": "x"}], "nemotron_vl", {}, "got no messages"),
        ("What?", "nemotron_vl", {"think": True, "answer_prefix": "A"},
         "answer_prefix must be left out for a model that thinks first"),
        (" /no_think", "nemotron_vl", {}, "question must not be empty or blank"),
    ],
)  # fmt: skip
def test_mistakes_of_switch_and_system(
    messages: Any, template: str, options: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        build_prompt(VISION, messages, template=template, **options)


def test_training_does_not_write_labels_yet() -> None:
    answered = [user("What?"), assistant("That.")]
    with pytest.raises(ValueError, match="template must be one without labels of frames"):
        training_prompt(VISION, answered, template="nemotron_vl")
