"""An answer that is sent while it is made."""

from __future__ import annotations

import asyncio
import json
import threading

from tests.serve.common import body, job
from timeviper_fast.serve.faults import Fault
from timeviper_fast.serve.protocol import Defaults, Reply, read_request
from timeviper_fast.serve.sse import Pieces, event, events
from timeviper_fast.serve.worker import Worker


def told(given, make, reply):
    """The events of a job whose pieces another thread makes."""

    async def collect():
        pieces = Pieces()
        threading.Thread(target=make, args=(pieces,)).start()
        return [line async for line in events(given, reply, await pieces.get(), pieces)]

    return asyncio.run(collect())


def reply_to(opening, **fields):
    sent = json.dumps(body(stream=True, **fields)).encode()
    return Reply(read_request(sent, Defaults("tiny", opening)))


def test_pieces_then_the_end_and_the_numbers(model, media):
    given = job(media, "a.mp4")
    worker = Worker(model, 10**9)
    worker.submit(given)
    worker.start()
    answered = given.done.result(20)
    worker.close()

    def make(pieces):
        for piece in ("\n", " one", " \n", "two", "\n", "\n", None):
            pieces.put(piece)

    reply = reply_to(given.opening, stream_options={"include_usage": True})
    lines = told(given, make, reply)
    assert all(line.endswith("\n\n") and line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]\n\n"
    chunks = [json.loads(line[6:]) for line in lines]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas == [
        {"role": "assistant", "content": ""}, {"content": "one"}, {"content": " \ntwo"}, {},
    ]  # fmt: skip
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-2]["choices"][0]["finish_reason"] == answered.answer.finish
    assert chunks[-2]["timeviper"]["frames"] == 3
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(answered.answer.token_ids)


def test_a_fault_behind_the_first_piece_is_an_event(media):
    given = job(media, "a.mp4")

    def make(pieces):
        pieces.put("one")
        given.fail(Fault(504, "too long", code="timeout"))
        pieces.put(None)

    lines = told(given, make, reply_to(given.opening))
    assert json.loads(lines[-1][6:])["error"]["code"] == "timeout"
    assert len(lines) == 3


def test_text_is_sent_as_it_is():
    assert event({"a": "\u00e9\n"}) == 'data: {"a": "\u00e9\\n"}\n\n'
