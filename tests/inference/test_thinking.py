"""What a model thinks stands apart from what it says."""

from __future__ import annotations

import pytest

from timeviper_fast.inference.thinking import END, Thought
from timeviper_fast.text.byte_tokenizer import SPECIAL_TOKENS, byte_tokenizer

BYTES = byte_tokenizer()
ONE = byte_tokenizer((*SPECIAL_TOKENS, END))


@pytest.mark.parametrize("tokenizer", [BYTES, ONE], ids=["letters", "one token"])
@pytest.mark.parametrize(
    ("answer", "thinking", "text"),
    [
        ("A cat? No.\n</think>\n\nA dog.", "A cat? No.", "A dog."),
        ("</think>A dog.", "", "A dog."),
        ("A cat? </thin", "A cat? </thin", ""),
        ("So </think>a </think> tag", "So", "a </think> tag"),
    ],
)
def test_the_first_mark_ends_the_thinking(tokenizer, answer, thinking, text):
    ids = tokenizer.encode(answer, add_special_tokens=False)
    thought = Thought.of(tokenizer, ids)
    assert thought.thinking == thinking
    # a mark that is a special token is no text
    assert thought.text == (text if tokenizer is BYTES else text.replace("</think>", ""))
    following = Thought(tokenizer)
    said = [token for token in ids if following.add(token)]
    assert tokenizer.decode(said, skip_special_tokens=True).strip() == thought.text


def test_text_in_the_same_token_as_the_mark_is_said():
    class Words:
        def decode(self, ids, **options):
            return "".join({0: "Hm", 1: "</th", 2: "ink>Yes", 3: " or no"}[i] for i in ids)

    thought = Thought.of(Words(), [0, 1, 2, 3])
    assert (thought.thinking, thought.text) == ("Hm", "Yes or no")


def test_an_answer_without_thinking_is_all_said():
    thought = Thought(BYTES, thinks=False)
    assert all(thought.add(token) for token in b"Yes</think>")
    assert (thought.thinking, thought.text) == ("", "Yes</think>")
