"""The prompts, word for word."""

from __future__ import annotations

import pytest

from tests.evaluation.sets.common import question, sentence
from timeviper_fast.evaluation.sets.prompts import asked


def test_options_stand_one_per_line():
    row = question(options=("A. red", "B. blue"))
    assert asked(row, "paper", 9.0, 4) == (
        "What flies?\nA. red\nB. blue\n"
        "Please provide your answer by stating the letter followed by the full option.",
        "Best Option: (",
    )
    assert asked(row, "letter", 9.0, 4) == (
        "What flies?\nA. red\nB. blue\nAnswer with the letter of the right option only.",
        "",
    )
    assert asked(row, "question", 9.0, 4) == ("What flies?", "")


def test_subtitles_stand_in_front_of_the_question():
    row = question(options=("A. red", "B. blue"))
    head = "This video's subtitles are listed below:\nlook\nup\n"
    for style in ("paper", "letter", "question"):
        plain = asked(row, style, 9.0, 4)
        shown = asked(row, style, 9.0, 4, subtitles=["look", "up"])
        assert shown == (head + plain.prompt, plain.answer_prefix)


def test_the_grounding_sentence():
    prompt, prefix = asked(sentence(duration=31.5), "paper", 30.0, 16)
    assert prompt == (
        "The video lasts for 31.50 seconds, and 16 frames are uniformly sampled from it. "
        "Investigate the video to identify the segment that matches the textual query 'they wave', "
        "and output the start and end timestamps in seconds. The output format of the predicted "
        "timestamp should be like: 'start to end' seconds."
    )
    assert prefix == ""
    assert asked(sentence(), "paper", 30.0, 16)[0].startswith("The video lasts for 30.00 seconds")


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="style must be one of paper, letter, question, got 'cot'"):
        asked(question(), "cot", 9.0, 4)
