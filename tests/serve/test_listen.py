"""The end of the server while it answers."""

from __future__ import annotations

import json
import socket
import threading

import httpx2 as httpx
import pytest

from tests.serve.common import KEY, body, running, served, wait_for
from timeviper_fast.errors import ArgumentError
from timeviper_fast.serve.listen import expect_free


def test_the_end_is_told_to_every_request_and_comes_soon(model, root):
    told: list[httpx.Response] = []
    with running(given := served(model, root)) as address:

        def asking(**fields):
            told.append(
                httpx.post(
                    f"{address}/v1/chat/completions",
                    json=body(max_tokens=512, temperature=1.0, seed=1, **fields),
                    headers={"Authorization": f"Bearer {KEY}"},
                    timeout=20,
                )
            )

        threads = [threading.Thread(target=asking), threading.Thread(target=asking)]
        threads.append(threading.Thread(target=asking, kwargs={"stream": True}))
        for thread in threads:
            thread.start()
        wait_for(lambda: given.places.taken == 3)
    for thread in threads:
        thread.join(20)
    assert len(told) == 3
    for response in told:
        last = response.text.strip().rpartition("data: ")[2]
        assert json.loads(last)["error"]["code"] == "closing"
    assert not given.workers[0].alive


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_refused(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ArgumentError, match=rf"^port must be free to listen .*, got {port}"):
            expect_free(host, port)
    expect_free(host, port)
