"""Options as tasks write them, what a document shows, and keys that tell queries apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from timeviper_fast.errors import ArgumentError
from timeviper_fast.evaluation.lmms.query import (
    Options,
    Query,
    ignored_options,
    options_of,
    visual_of,
)
from timeviper_fast.inference.request import Sampling

QUERY = Query("task", "test", 3, "What?", "/data/one.mp4")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, Options(256)),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1}, Options(16)),
        ({"do_sample": False, "temperature": 0.7, "top_p": None}, Options()),
        ({"do_sample": True}, Options(sampling=Sampling(temperature=1.0))),
        ({"temperature": 0.5, "top_p": 0.9}, Options(sampling=Sampling(0.5, top_p=0.9))),
        ({"do_sample": True, "temperature": 0, "top_p": 0}, Options()),
        ({"repetition_penalty": 1.1}, Options(sampling=Sampling(repetition_penalty=1.1))),
        ({"until": "\n"}, Options(until=("\n",))),
        ({"until": ["\n\n", "."]}, Options(until=("\n\n", "."))),
    ],
)
def test_options(given, wanted):
    before = dict(given)
    assert options_of(given) == wanted
    assert given == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"num_beams": 5},
            r"timeviper_fast: num_beams must be 1 \(there is no beam search\), got 5",
        ),
        ({"until": [""]}, r"until must be a text that is not empty, or a list of them, got \[''\]"),
        ({"until": 3}, "until must be a text"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive number of tokens, got 0"),
        ({"temperature": -1}, "temperature must be 0 or more, got -1"),
    ],
)
def test_options_that_are_refused(given, said):
    with pytest.raises(ArgumentError, match=said):
        options_of(given)


def test_options_that_mean_nothing_here_are_named():
    given = {"image_aspect_ratio": "original", "max_new_tokens": 3, "attention_mask": None}
    assert ignored_options(given) == ["attention_mask", "image_aspect_ratio"]


def test_an_answer_ends_before_the_first_text_that_ends_it():
    assert Options(until=("\n", "end")).cut("the end\nis near") == "the "
    assert Options(until=("end", "\n")).cut("one\ntwo") == "one"
    assert Options(until=("x",)).cut("one") == "one"
    assert Options().cut("one\n") == "one\n"


def test_what_a_document_shows(tmp_path):
    assert visual_of(["a.mp4"]) == visual_of((tmp_path.parent / "a.mp4",))[-5:] == "a.mp4"
    assert visual_of(None) is None
    assert visual_of([]) is None
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    image = visual_of([Image.fromarray(pixels)])
    path = tmp_path / "image.png"
    path.write_bytes(image)
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    for wrong in (["a.mp4", "b.mp4"], [Image.fromarray(pixels)] * 2, [{"array": []}]):
        with pytest.raises(ArgumentError, match="doc_to_visual must give one video's path or one"):
            visual_of(wrong)


def test_keys_tell_queries_apart_but_not_folders():
    others = [
        replace(QUERY, doc_id=4),
        replace(QUERY, task="other"),
        replace(QUERY, split="validation"),
        replace(QUERY, text="Why?"),
        replace(QUERY, visual="/data/two.mp4"),
        replace(QUERY, visual=None),
        replace(QUERY, options=Options(7)),
        replace(QUERY, continuation=" A"),
        replace(QUERY, draw=1),
    ]
    assert len({QUERY.key, *(query.key for query in others)}) == 10
    assert replace(QUERY, visual="/elsewhere/one.mp4").key == QUERY.key
    assert not QUERY.drawn
    assert replace(QUERY, options=Options(sampling=Sampling(1.0))).drawn
