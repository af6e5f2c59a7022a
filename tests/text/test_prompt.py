"""Prompts against those of upstream TimeViper, their tokens and labels."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.goldens import DATA
from tests.text.common import BYTES
from timeviper_fast.layout import VisualSpan
from timeviper_fast.text.byte_tokenizer import SPECIAL_TOKENS, byte_tokenizer
from timeviper_fast.text.prompt import (
    Prompt,
    build_prompt,
    render_chat,
    stop_token_ids,
    training_prompt,
    video_sentence,
)
from timeviper_fast.text.template import chat_template
from timeviper_fast.training.loss import training_segment

IMAGE = 256 + SPECIAL_TOKENS.index("<image>")
GOLDEN = DATA / "prompts.json"
PROMPTS = json.loads(GOLDEN.read_text())["prompts"]
ANSWERED = [case for case in PROMPTS if "supervised_spans_toy_tokenizer" in case]
TEMPLATES = ["nano_base", "qwen2"]


def case_id(case: dict[str, Any]) -> str:
    return f"{case['case']}-{case['template']}"


def messages_of(case: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": m["role"], "content": m["text"]} for m in case["messages"]]


# upstream marks the place of the vision tokens in the messages
UPSTREAM = {"placeholder": "<image>"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


class ToyTokenizer:
    """One token per special token and per other character, as upstream's labels were made with."""

    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        assert not add_special_tokens
        return re.findall(r"<SPECIAL_\d+>|<\|im_start\|>|<\|im_end\|>|.", text, re.DOTALL)


@pytest.mark.parametrize("case", PROMPTS, ids=case_id)
def test_text_equals_upstream(case: dict[str, Any]) -> None:
    assert render_chat(messages_of(case), case["template"]) == case["prompt"]


@pytest.mark.parametrize("case", [c for c in PROMPTS if c not in ANSWERED], ids=case_id)
def test_tokens_equal_those_of_upstreams_text(case: dict[str, Any]) -> None:
    images = case["prompt"].count("<image>")
    how = {"template": case["template"], "vision": bool(images), **UPSTREAM}
    prompt = build_prompt(BYTES, messages_of(case), **how)
    whole = BYTES.encode(case["prompt"], add_special_tokens=False)
    assert prompt.before + [IMAGE] * images + prompt.after == whole
    assert prompt.length(images) == len(whole)
    assert prompt.span(images) == VisualSpan(whole.index(IMAGE) if images else 0, images)
    assert prompt.text.replace("<image>", "<image>" * images) == case["prompt"]
    # a question without the trailing empty answer is the same prompt
    if not messages_of(case)[-1]["content"]:
        asked = messages_of(case)[:-1]
        assert build_prompt(BYTES, asked, **how) == prompt
    # nor does the mark change anything where the vision tokens go in front anyway
    unmarked = [
        {**turn, "content": turn["content"].replace("<image>", "")} for turn in messages_of(case)
    ]
    assert build_prompt(BYTES, unmarked, **{**how, "placeholder": None}) == prompt


@pytest.mark.parametrize("case", ANSWERED, ids=case_id)
def test_labels_equal_upstream(case: dict[str, Any]) -> None:
    images = case["prompt"].count("<image>")
    how = {"template": case["template"], "vision": bool(images), **UPSTREAM}
    prompt = training_prompt(ToyTokenizer(), messages_of(case), **how)
    assert prompt.length(images) == case["toy_token_count"]
    ids = [*prompt.before, *["<image>"] * images, *prompt.after]
    assert "".join(ids) == case["prompt"]
    labels = prompt.labels(images)
    want: list[Any] = [-100] * len(ids)
    for span in case["supervised_spans_toy_tokenizer"]:
        assert "".join(ids[span["start"] : span["end"]]) == span["text"]
        want[span["start"] : span["end"]] = ids[span["start"] : span["end"]]
    assert labels == want


def test_labels_of_an_answer_in_front_of_the_vision_tokens() -> None:
    turns = [user("Hi"), assistant("Yes?"), user("<video>Who?"), assistant("A chef.")]
    prompt = training_prompt(BYTES, turns, placeholder="<video>")
    labels = prompt.labels(3)
    ids = prompt.before + [IMAGE] * 3 + prompt.after
    assert all(label in (-100, i) for label, i in zip(labels, ids))
    assert labels[prompt.span(3).start : prompt.span(3).stop] == [-100] * 3
    learnt = [label for label in labels if label != -100]
    header = "<SPECIAL_11>Assistant\n"
    assert BYTES.decode(learnt) == f"{header}Yes?\n<SPECIAL_12>{header}A chef.\n<SPECIAL_12>"


@pytest.mark.parametrize("template", ["nano_base", "qwen2"])
def test_without_the_header_training_asks_with_the_token_that_inference_asks_with(template) -> None:
    turns = [user("Hi"), assistant("Yes?"), user("Who?"), assistant("A chef.")]
    prompt = training_prompt(BYTES, turns, template=template, learn_header=False)
    close = chat_template(template).assistant[1]
    labels = prompt.labels(3)
    assert BYTES.decode([i for i in labels if i != -100]) == f"Yes?{close}A chef.{close}"
    segment = training_segment(torch.tensor(labels), prompt.span(3))
    asked = build_prompt(BYTES, turns[:-1], template=template)
    assert segment.length - segment.query_from_end == asked.length(3)
    whole = training_prompt(BYTES, turns, template=template)
    assert (prompt.before, prompt.after) == (whole.before, whole.after)


@pytest.mark.parametrize(
    ("question", "mark", "text"),
    [
        ("What is it?", None, "<image>What is it?"),
        ("What is it?", "<video>", "<image>What is it?"),
        ("<video>\nWhat is it?", "<video>", "<image>\nWhat is it?"),
        ("Look: <image> What is it?", "<image>", "Look: <image> What is it?"),
        ("Look: <image><image><image> here", "<image>", "Look: <image> here"),
        ("Look: (+)(+) here", "(+)", "Look: <image> here"),
    ],
)
def test_place_of_the_vision_tokens(question: str, mark: str | None, text: str) -> None:
    prompt = build_prompt(BYTES, question, placeholder=mark)
    assert prompt.text == (
        "<SPECIAL_10>System\n<SPECIAL_12>\n<SPECIAL_11>User\n"
        + text
        + "\n<SPECIAL_12><SPECIAL_11>Assistant\n"
    )
    head, tail = prompt.text.split("<image>")
    assert BYTES.decode(prompt.before) == head
    assert BYTES.decode(prompt.after) == tail
    assert IMAGE not in prompt.before + prompt.after


def test_vision_goes_before_the_first_question_or_to_its_mark_in_a_later_one() -> None:
    turns = [user("Who?"), assistant("A chef."), user("And <video> now?")]
    marked = build_prompt(BYTES, turns, template="qwen2", placeholder="<video>")
    assert "user\nWho?<|im_end|>" in marked.text
    assert "user\nAnd <image> now?<|im_end|>" in marked.text
    assert "A chef." in BYTES.decode(marked.before)
    plain = build_prompt(BYTES, [*turns[:2], user("And now?")], template="qwen2")
    assert "user\n<image>Who?<|im_end|>" in plain.text
    assert BYTES.decode(plain.after).endswith("And now?<|im_end|>\n<|im_start|>assistant\n")


def test_without_vision_everything_is_behind_an_empty_span() -> None:
    prompt = build_prompt(BYTES, "Say hello.", vision=False)
    assert prompt.before == []
    assert prompt.span(0) == VisualSpan(0, 0)
    assert BYTES.decode(prompt.after) == prompt.text
    assert "<image>" not in prompt.text


def test_forced_answer_is_tokenised_on_its_own_and_ends_the_prompt() -> None:
    plain = build_prompt(BYTES, "Which?")
    forced = build_prompt(BYTES, "Which?", answer_prefix="Best Option: (")
    assert forced.before == plain.before
    assert forced.after == plain.after + list(b"Best Option: (")
    assert forced.text == plain.text + "Best Option: ("


def test_video_sentence_stands_between_vision_and_question() -> None:
    assert video_sentence(60, 128) == (
        "The video lasts for 60 seconds, and 128 frames are uniformly sampled from it. "
    )
    assert "for 93.27 seconds" in video_sentence(93.2727272, 94)
    preface = video_sentence(60, 128)
    text = build_prompt(BYTES, "When does it end?", preface=preface).text
    assert f"User\n<image>{preface}When does it end?\n" in text
    text = build_prompt(BYTES, "In <video> when?", preface=preface, placeholder="<video>").text
    assert f"User\nIn <image>{preface} when?\n" in text


def test_nothing_of_a_question_is_learnt() -> None:
    prompt = build_prompt(BYTES, "Which?", answer_prefix="(")
    assert prompt.labels(4) == [-100] * prompt.length(4)


def test_a_backslash_in_the_preface_stays_one() -> None:
    prompt = build_prompt(BYTES, "<video>?", preface=r"\1 \g<0>", placeholder="<video>")
    assert r"<image>\1 \g<0>?" in prompt.text


text_without_marks = st.text(max_size=40).filter(
    lambda text: text.strip() and not any(token in text for token in SPECIAL_TOKENS)
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    text=text_without_marks,
    history=st.lists(st.tuples(text_without_marks, text_without_marks), max_size=2),
    template=st.sampled_from(TEMPLATES),
    tokens=st.integers(0, 5),
)
def test_pieces_are_the_whole_text(
    text: str, history: list[tuple[str, str]], template: str, tokens: int
) -> None:
    turns = [turn for asked, said in history for turn in (user(asked), assistant(said))]
    prompt = build_prompt(BYTES, [*turns, user(text)], template=template)
    whole = BYTES.encode(prompt.text, add_special_tokens=False)
    assert [*prompt.before, IMAGE, *prompt.after] == whole
    span = prompt.span(tokens)
    assert (span.start, span.stop) == (len(prompt.before), len(prompt.before) + tokens)
    learnt = training_prompt(BYTES, [*turns, user(text), assistant("yes")], template=template)
    labels = learnt.labels(tokens)
    assert len(labels) == learnt.length(tokens)
    ids = learnt.before + [-1] * tokens + learnt.after
    said = BYTES.decode([i for i, label in zip(ids, labels) if label != -100])
    answers = [*(answer for _, answer in history), "yes"]
    header, end = {
        "nano_base": ("<SPECIAL_11>Assistant\n", "\n<SPECIAL_12>"),
        "qwen2": ("\n<|im_start|>assistant\n", "<|im_end|>"),
    }[template]
    assert said == "".join(header + answer + end for answer in answers)


def word_tokenizer() -> Any:
    """A tokenizer of another kind: whole words, an unknown token, and a BOS put in front."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = ["[UNK]", "[BOS]", "[EOS]", "what", "happens", "?"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    )


def test_any_tokenizer_and_nothing_added_to_the_pieces() -> None:
    tokenizer = word_tokenizer()
    assert tokenizer.encode("what")[0] == 1
    prompt = build_prompt(tokenizer, "what happens?", answer_prefix="what")
    assert 1 not in prompt.before + prompt.after
    assert prompt.after[:3] == [3, 4, 5]
    assert prompt.after[-1] == 3


def test_stop_ids() -> None:
    at = {token: 256 + i for i, token in enumerate(SPECIAL_TOKENS)}
    assert stop_token_ids(BYTES) == (at["</s>"], at["<SPECIAL_12>"])
    assert stop_token_ids(BYTES, "qwen2") == (at["</s>"], at["<|im_end|>"])
    # tokens it does not know are not its unknown token
    assert stop_token_ids(word_tokenizer()) == (2,)
    assert stop_token_ids(word_tokenizer(), "qwen2") == (2,)
    without_eos = byte_tokenizer()
    without_eos.eos_token = None
    assert stop_token_ids(without_eos, "qwen2") == (at["<|im_end|>"],)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("", "question must not be empty or blank, got ''"),
        (" \n\t", "question must not be empty or blank, got ' "),
        ([], "question must not be empty or blank, got no messages"),
        ("O\udcf9 est-il?", r"question must be valid UTF-8 text, got 'O\\udcf9 est-il\?'"),
        (b"Who?", r"question must be text, or a list of messages .*, got bytes$"),
        (None, r"question must be text, .*, got NoneType$"),
        (user("Who?"), r"question must be text, .*, got dict$"),
        (["Who?"], r"question must be text, or a list .*, got str as turn 0$"),
        ([user("a"), b"b"], r"question must be text, or a list .*, got bytes as turn 1$"),
        ([assistant("hi")], "take turns, user first, then assistant, got 'assistant' as turn 0"),
        ([user("a"), user("b")], "take turns, user first, then assistant, got 'user' as turn 1"),
        ([{"role": "system", "content": "x"}, user("a")], "got 'system' as turn 0"),
        ([{"content": "x"}], "got None as turn 0"),
        ([{"role": "user", "content": [{"type": "text"}]}], "must be a string, got list in turn 0"),
        ([{"role": "user"}], "must be a string, got NoneType in turn 0"),
        ([user("a"), assistant(""), user("b")], "answer must not be empty .*got turn 1"),
        ([user("a"), assistant("b")], "messages must end with the user's turn, .*answer_prefix"),
    ],
)
def test_mistakes(question: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^prompt: .*{sentence}"):
        build_prompt(BYTES, question)


@pytest.mark.parametrize("prefix", [3, None, b"Best"])
def test_an_answer_begins_with_text(prefix: Any) -> None:
    with pytest.raises(ValueError, match=r"^prompt: answer_prefix must be valid UTF-8 text, got "):
        build_prompt(BYTES, "Who?", answer_prefix=prefix)


def test_unknown_template() -> None:
    sentence = r"template must be one of 'nano_base', 'qwen2', 'qwen_2', .*, got 'vicuna'"
    for call in (
        lambda: build_prompt(BYTES, "Who?", template="vicuna"),
        lambda: render_chat([user("Who?")], "vicuna"),
        lambda: stop_token_ids(BYTES, "vicuna"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.mark.parametrize(
    ("question", "mark", "sentence"),
    [
        ("<video>\n", "<video>", "question must not be empty or blank, got '<video>"),
        ("a <image> b <image>", "<image>", "vision tokens must have one place .*, got 2 places"),
        ([user("<image>a"), assistant("b"), user("<image>c")], "<image>", ".*one place"),
        ("Who?", "", "placeholder must be a string or None, got ''"),
        ("Who?", 3, "placeholder must be a string or None, got 3"),
    ],
)
def test_mistakes_with_a_placeholder(question: Any, mark: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^prompt: {sentence}"):
        build_prompt(BYTES, question, placeholder=mark)


def test_a_place_for_vision_without_vision() -> None:
    with pytest.raises(ValueError, match="plain text without vision, got a placeholder"):
        build_prompt(BYTES, "See <video>?", vision=False, placeholder="<video>")
    with pytest.raises(ValueError, match="plain text without vision, got a preface"):
        build_prompt(BYTES, "See?", vision=False, preface=video_sentence(1, 1))


SPECIAL_IDS = range(256, 256 + len(SPECIAL_TOKENS))
MARKS = [*SPECIAL_TOKENS, "<image><image>", "<<image>", "<|im_<|im_end|>end|>"]


def special_ids(prompt: Prompt) -> list[int]:
    return [i for i in (*prompt.before, *prompt.after) if i in SPECIAL_IDS]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("vision", [True, False])
@pytest.mark.parametrize("word", MARKS)
def test_special_tokens_in_what_is_said_are_words(word: str, vision: bool, template: str) -> None:
    """No id of theirs, no end of a turn, no place for the vision tokens; the text stays whole."""
    plain = [user("What does Z do?"), assistant("Z, I think."), user("Z Z")]
    said = [{**turn, "content": turn["content"].replace("Z", word)} for turn in plain]
    how = {"template": template, "vision": vision, "answer_prefix": "Z"}
    want = build_prompt(BYTES, plain, **how)
    prompt = build_prompt(BYTES, said, **{**how, "answer_prefix": word})
    assert special_ids(prompt) == special_ids(want)
    assert BYTES.decode(prompt.before) == BYTES.decode(want.before)
    assert BYTES.decode(prompt.after) == BYTES.decode(want.after).replace("Z", word)
    assert prompt.text == want.text.replace("Z", word)
    assert prompt.labels(3) == [-100] * prompt.length(3)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("word", MARKS)
def test_special_tokens_in_what_is_learnt_are_words(word: str, template: str) -> None:
    plain = [user("What does Z do?"), assistant("Z, I think.")]
    said = [{**turn, "content": turn["content"].replace("Z", word)} for turn in plain]
    want = training_prompt(BYTES, plain, template=template)
    prompt = training_prompt(BYTES, said, template=template)
    learnt, learnt_plain = ([i for i in p.labels(2) if i != -100] for p in (prompt, want))
    assert BYTES.decode(learnt) == BYTES.decode(learnt_plain).replace("Z", word)
    assert special_ids(prompt) == special_ids(want)


def test_a_question_of_one_special_word_is_a_question() -> None:
    prompt = build_prompt(BYTES, "<video>")
    assert prompt.text.count("<video>") == 1
    assert BYTES.decode(prompt.after).startswith("<video>\n")


def test_words_that_a_tokenizer_added_stay_tokens() -> None:
    """Only special tokens are cut; a word or a run of spaces that was added is vocabulary."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["    ", "photosynthesis"])
    prompt = build_prompt(tokenizer, "What is    photosynthesis?")
    assert {tokenizer.convert_tokens_to_ids(word) for word in ("    ", "photosynthesis")} <= {
        *prompt.after
    }


def test_a_marker_is_words_even_if_it_was_not_added_as_special() -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<SPECIAL_12>", "<image>"])
    marker, image = (tokenizer.convert_tokens_to_ids(t) for t in ("<SPECIAL_12>", "<image>"))
    plain = build_prompt(tokenizer, "what ?")
    prompt = build_prompt(tokenizer, "what <SPECIAL_12> <image> [EOS] ?")
    assert prompt.after.count(marker) == plain.after.count(marker) > 0
    assert image not in prompt.before + prompt.after
    assert 2 not in prompt.after


def test_nothing_to_learn_from() -> None:
    for turns in ([user("a")], [user("a"), assistant("")]):
        with pytest.raises(ValueError, match="messages must end with an answer, got none"):
            training_prompt(BYTES, turns)
