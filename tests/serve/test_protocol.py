"""Requests that are read and checked, and the bodies of answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.serve.common import OPENING, body, messages
from timeviper_fast.inference.request import Question, Sampling
from timeviper_fast.serve.faults import Fault
from timeviper_fast.serve.protocol import Defaults, read_request

DEFAULTS = Defaults("tiny", OPENING, 300)


def read(**fields):
    return read_request(json.dumps(body(**fields)).encode(), DEFAULTS)


def refused(data: bytes) -> Fault:
    with pytest.raises(Fault) as raised:
        read_request(data, DEFAULTS)
    return raised.value


def test_a_request_in_full():
    asked = read(
        url="x.mp4",
        question="Where?",
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=None,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        top_k=5,
        repetition_penalty=1.1,
        timeviper={
            "sample": "fps:2", "stages": "none", "start": 1, "end": 2.5, "answer_prefix": "In",
            "think": True, "evidence": True,
        },
        user="me",
        metadata={"a": "b"},
        n=1,
        stop=None,
    )  # fmt: skip
    assert (asked.url, asked.stream, asked.usage, asked.evidence) == ("x.mp4", True, True, True)
    asked_of = [{"role": "user", "content": "Where?"}]
    assert asked.question == Question(asked_of, 9, Sampling(0.5, 5, 0.9, 3, 1.1), "In", think=True)
    assert asked.opening == replace(OPENING, policy="fps:2", stages="none", start=1, end=2.5)


def test_what_is_left_out_is_greedy_and_read_as_the_server_reads():
    asked = read(max_tokens=None)
    assert asked.question.sampling == Sampling()
    assert asked.question.max_new_tokens == 256
    assert asked.opening == OPENING
    assert (asked.stream, asked.usage, asked.evidence) == (False, False, False)


def test_numbers_of_frames_as_other_servers_have_them():
    for fields in (
        {"media_io_kwargs": {"video": {"num_frames": 7}}},
        {"chat_template_kwargs": {"num_frames": 7}},
    ):
        assert read(**fields).opening.policy == "uniform:7"


def test_a_conversation_keeps_its_turns():
    turns = [
        *messages("x.mp4", "What?"),
        {"role": "assistant", "content": "A square.", "refusal": None, "annotations": []},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Its"}, {"type": "text", "text": "colour?"}],
        },
    ]
    assert read(messages=turns).question.question == [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": "Its\ncolour?"},
    ]


WRONG = {
    "model": [(None, "missing_field"), ("", "invalid_value"), ("other", "model_not_found")],
    "messages": [
        (None, "missing_field"), ([], "invalid_value"), ("What?", "invalid_value"), ([1], "invalid_value"),
        ([{"role": "user", "content": "no video"}], "invalid_video"),
        ([{"role": "system", "content": "Be brief."}, *messages("a")], "invalid_value"),
        ([*messages("a"), *messages("b")], "invalid_value"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "invalid_value"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], "missing_field"),
        ([{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}], "unknown_field"),
        ([*messages("a", "half \ud800")], "invalid_value"),
        ([*messages("a"), {"role": "assistant", "content": "It ends with the model."}], "invalid_value"),
    ],
    "max_tokens": [(0, "invalid_value"), (301, "invalid_value"), (True, "invalid_value"), (1.5, "invalid_value"), (10**400, "invalid_value")],
    "temperature": [(-1, "invalid_value"), ("hot", "invalid_value"), (10**400, "invalid_value")],
    "top_p": [(0, "invalid_value")],
    "seed": [(2**70, "invalid_value"), (0.5, "invalid_value")],
    "stream": [("yes", "invalid_value"), (1, "invalid_value")],
    "stream_options": [({"other": 1}, "unknown_field"), ([], "invalid_value")],
    "n": [(2, "invalid_value")],
    "tools": [([{"type": "function"}], "invalid_value")],
    "stop": [("x", "invalid_value")],
    "response_format": [({"type": "json_object"}, "invalid_value")],
    "media_io_kwargs": [({"video": {"num_frames": 0}}, "invalid_value"), ({"audio": {}}, "unknown_field")],
    "timeviper": [
        ({"sample": "often"}, "invalid_value"), ({"sample": "uniform:0"}, "invalid_value"),
        ({"sample": "uniform:" + "9" * 5000}, "invalid_value"), ({"sample": "fps:1e999"}, "invalid_value"),
        ({"start": 10**400}, "invalid_value"), ({"end": 10**400}, "invalid_value"),
        ({"start": -1}, "invalid_value"), ({"start": 3, "end": 2}, "invalid_value"),
        ({"evidence": 1}, "invalid_value"), ({"more": 1}, "unknown_field"), ("x", "invalid_value"),
    ],
    "unknown\ud800": [(1, "unknown_field")],
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_each_field_has_its_rule(field):
    for value, code in WRONG[field]:
        fault = refused(json.dumps({**body(), field: value}).encode())
        assert (fault.status, fault.code) == (404 if code == "model_not_found" else 400, code), (
            value
        )
        assert len(fault.message) <= 1000
        json.dumps(fault.body, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"\xff\xfe", b"[]", b'"text"', b"null", b"1e999", b'{"a": NaN}', b"[" * 100_000,
        b'{"a": ' * 100_000, b'{"model": "tiny", "model": "tiny"}', b'{"a": {"b": 1, "b": 2}}',
        b'{"seed": ' + b"9" * 100_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(data):
    fault = refused(data)
    assert (fault.status, fault.code) == (400, "invalid_json")
    assert len(fault.message) < 100


def test_numbers_that_are_not_finite_are_refused():
    sent = json.dumps(body(temperature=0.125)).replace("0.125", "1e999").encode()
    assert refused(sent).message == "temperature must be a number, got inf"
