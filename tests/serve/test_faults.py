"""What clients are told of failures."""

from __future__ import annotations

import json

import pytest
import torch

from timeviper_fast.errors import ArgumentError, VideoError
from timeviper_fast.serve.faults import Fault, fault_of, invalid


def test_a_body_has_the_protocols_four_fields():
    fault = invalid("top_p", "lie in (0, 1]", 2)
    assert fault.body == {
        "error": {
            "message": "top_p must lie in (0, 1], got 2",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": "invalid_value",
        }
    }
    assert (fault.status, fault.headers) == (400, {})


@pytest.mark.parametrize(
    ("status", "kind", "headers"),
    [
        (401, "authentication_error", {"WWW-Authenticate": "Bearer"}),
        (404, "invalid_request_error", {}),
        (429, "rate_limit_error", {"Retry-After": "3"}),
        (503, "server_error", {"Retry-After": "3"}),
        (504, "server_error", {"x-should-retry": "false"}),
    ],
)
def test_kinds_and_headers_follow_the_status(status, kind, headers):
    fault = Fault(status, "no", retry=3 if status in (429, 503) else None)
    assert fault.body["error"]["type"] == kind
    assert fault.headers == headers


def test_errors_become_faults_that_name_no_path_of_the_server():
    path, name = "/srv/films/in/a.mp4", "in/a.mp4"
    for error, status in (
        (VideoError(f"{path}: it is a text file"), 400),
        (ArgumentError("ask", "video", "be short", path), 400),
        (OSError(5, "Input/output error", path), 400),
        (torch.OutOfMemoryError(f"{path} is too long"), 503),
        (RuntimeError(f"{path} broke"), 500),
    ):
        fault = fault_of(error, path, name)
        assert fault.status == status
        assert "/srv" not in fault.message
    assert fault_of(RuntimeError("secret")).message == "the server failed; its log says why"
    known = Fault(404, "gone")
    assert fault_of(known) is known


def test_any_text_of_a_request_can_be_told():
    told = json.dumps(invalid("url", "be a path", "\ud800" * 100).body, ensure_ascii=False)
    assert len(told.encode()) < 400
    assert Fault(400, "half \ud800").message == "half \\ud800"
