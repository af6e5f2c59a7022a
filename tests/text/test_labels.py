"""The labels of a video's frames against six recorded forms, and their ids."""

from __future__ import annotations

from typing import Any

import pytest

from tests.goldens import manifest
from tests.text.common import VISION
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.text.labels import LabelIds
from timeviper_fast.text.prompt import build_prompt, label_ids, vision_preface
from timeviper_fast.text.template import TEMPLATES

CASES = manifest("nemotron_vl_prompts")["cases"]
# the template that writes each form, and whether several frames share a label
FORMS = {
    "omni_transformers": ("nemotron_omni", True),
    "omni_vllm": ("nemotron_omni", True),
    "nano12b_vllm": ("nemotron_vl_joined", False),
    "nano12b_sglang": ("nemotron_vl_run_on", False),
    "nano12b_training": ("nemotron_vl", False),
    "nano12b_training_exact_seconds": ("nemotron_vl", False),
}


def seconds_of(case: dict[str, Any], form: str) -> list[float | None]:
    """The frames' seconds by the rule that the form's text was recorded with."""
    if case["fps"] is None:
        return [None] * case["frames"]
    if form.endswith("exact_seconds"):
        return [index / case["fps"] for index in case["frames_indices"]]
    return [int(1000 / case["fps"]) * index / 1000 for index in case["frames_indices"]]


@pytest.mark.parametrize("form", FORMS)
def test_text_equals_the_recorded_form(form: str) -> None:
    template, shared = FORMS[form]
    for case in [case for case in CASES if form in case]:
        labels = TEMPLATES[template].labels
        assert labels is not None
        group = case["tubelet"] if shared else 1
        vision = "<image>" * case["tokens_per_unit"]
        assert labels.written(seconds_of(case, form), vision, group) == case[form]


@pytest.mark.parametrize("form", FORMS)
def test_ids_around_the_vision_tokens_are_those_of_the_recorded_text(form: str) -> None:
    template, shared = FORMS[form]
    for case in [case for case in CASES if form in case]:
        ids = label_ids(VISION, template)
        assert ids is not None
        seconds, group = seconds_of(case, form), case["tubelet"] if shared else 1
        # in two pushes, as a stream labels what comes later
        cut = 2 * group
        openings = ids.openings(seconds[:cut], group)
        openings += ids.openings(seconds[cut:], group, first=cut) if seconds[cut:] else []
        how = {"template": template, "preface": vision_preface(template), "video": True}
        prompt = build_prompt(VISION, "Q", **how).labelled(openings)
        mark = VISION.encode("<image>", add_special_tokens=False) * case["tokens_per_unit"]
        whole = list(prompt.before)
        for text in [*prompt.between, prompt.after]:
            whole += mark + text
        chat = TEMPLATES[template]
        head = prompt.text.partition("<image>")[0].removesuffix(chat.labels.lead)
        want = head + case[form] + chat.behind_vision + "Q"
        assert VISION.decode(whole).startswith(want)
        runs = len(openings)
        assert prompt.length(runs * case["tokens_per_unit"]) == len(whole)
        assert len(prompt.supervised) == len(whole) - runs * case["tokens_per_unit"]


def test_later_labels_close_the_frame_in_front_of_them() -> None:
    ids = LabelIds(VISION, TEMPLATES["nemotron_vl"].labels)
    [opening] = ids.openings([3599.994], first=7200)
    assert VISION.decode(opening) == "</img>\nFrame 7201 sampled at 3599.99 seconds: <img>"
    marks = [VISION.convert_tokens_to_ids(mark) for mark in ("</img>", "<img>")]
    assert [opening[0], opening[-1]] == marks


@pytest.mark.parametrize("mark", ["<img>", "</img>"])
def test_a_tokenizer_without_a_mark_is_refused(mark: str) -> None:
    special = [word for word in ("</s>", "<img>", "</img>") if word != mark]
    with pytest.raises(ValueError, match=f"the tokenizer must have {mark} as a token"):
        build_prompt(byte_tokenizer(special), "What?", template="nemotron_vl")
