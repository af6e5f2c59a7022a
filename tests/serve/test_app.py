"""The server, asked by OpenAI's own client."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import httpx2 as httpx
import openai
import pytest
from PIL import Image

from tests.serve.common import KEY, body, client_of, messages, running, served, wait_for


@pytest.fixture(scope="module")
def server(model, root):
    return served(model, root)


@pytest.fixture(scope="module")
def address(server):
    with running(server) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return client_of(address)


@pytest.fixture(scope="module")
def http(address):
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}) as http:
        yield http


def ask(client, url="a.mp4", question="What?", **options):
    given = {"model": "tiny", "max_tokens": 6, **options}
    return client.chat.completions.create(messages=messages(url, question), **given)


def test_models(client, http):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "timeviper_fast"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/name")


def test_an_answer_is_that_of_ask(client, model, root):
    alone = model.ask(root / "a.mp4", "What?", policy="fps:1", max_new_tokens=6)
    reply = ask(client)
    assert reply.choices[0].message.content == alone.text
    assert reply.choices[0].finish_reason == alone.finish
    assert reply.usage.completion_tokens == len(alone.token_ids)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + len(alone.token_ids)
    assert reply.timeviper["frames"] == 3
    assert reply.timeviper["kept_seconds"] == sorted(set(alone.kept_seconds))
    assert ask(client).timeviper["held"]


def test_a_video_in_the_request_is_the_same_video(client, root):
    data = base64.b64encode((root / "a.mp4").read_bytes()).decode()
    reply = ask(
        client, f"data:video/mp4;base64,{data}", extra_body={"timeviper": {"evidence": True}}
    )
    same = ask(client)
    assert reply.choices[0].message.content == same.choices[0].message.content
    assert reply.timeviper["held"]
    assert set(reply.timeviper["evidence"]) > {"spans"}
    assert "evidence" not in same.timeviper


def test_an_image_is_a_video_of_one_frame(client, model):
    data = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    parts = [{"type": "text", "text": "Which"}, {"type": "image_url", "image_url": {"url": url}}]
    parts.append({"type": "text", "text": "colour?"})
    reply = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], max_tokens=6
    )
    alone = model.ask(data.getvalue(), "Which\ncolour?", max_new_tokens=6)
    assert reply.choices[0].message.content == alone.text
    assert reply.timeviper["frames"] == 1


def test_a_stream_is_the_same_answer_in_pieces(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = ask(client)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].timeviper["frames"] == 3
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 4


def test_a_fault_has_the_protocols_form(client, http):
    with pytest.raises(openai.PermissionDeniedError) as raised:
        ask(client, "/etc/passwd")
    assert (raised.value.code, raised.value.type) == ("media_forbidden", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, stream=True, max_tokens=600)
    assert refused.value.param == "max_tokens"
    for response, status in (
        (http.get("/v1/other"), 404),
        (http.get("/v1/chat/completions"), 405),
        (http.post("/v1/chat/completions", content=b"{}"), 415),
        (http.get("/docs"), 404),
    ):
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_without_the_key_only_health_answers(address, client):
    with pytest.raises(openai.AuthenticationError):
        client_of(address, "other").models.list()
    for path, status in (("/health", 200), ("/metrics", 401), ("/v1/models", 401), ("/x", 401)):
        response = httpx.get(f"{address}{path}")
        assert response.status_code == status
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_metrics_count_responses(http):
    before = http.get("/metrics").text
    http.get("/v1/models")
    after = http.get("/metrics").text
    count = 'timeviper_requests_total{code="200"} '

    def number(text):
        return int(text.split(count)[1].split()[0])

    assert number(after) == number(before) + 2


def test_a_client_that_leaves_ends_its_answer(server, client, http):
    worker = server.workers[0]
    left, tokens = worker.counts["left"], worker.counts["tokens"]
    stream = ask(client, stream=True, max_tokens=512, temperature=1.0, seed=1)
    next(iter(stream))
    stream.close()
    wait_for(lambda: worker.counts["left"] == left + 1)
    impatient = {"Authorization": f"Bearer {KEY}"}
    long = body(max_tokens=512, temperature=1.0, seed=1)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{http.base_url}/v1/chat/completions", json=long, timeout=0.2, headers=impatient
        )
    wait_for(lambda: worker.counts["left"] == left + 2)
    wait_for(lambda: server.places.taken == 0)
    assert worker.counts["tokens"] == tokens
    assert ask(client).choices[0].message.content


def test_a_full_queue_says_when_to_come_again(model, root):
    few = served(model, root)
    few.places.most = 1
    with running(few) as address:
        client = client_of(address)
        stream = ask(client, stream=True, max_tokens=512, temperature=1.0, seed=1)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as raised:
            ask(client)
        assert raised.value.code == "queue_full"
        assert 1 <= int(raised.value.response.headers["Retry-After"]) <= 60
        stream.close()
        # the official client comes again by itself
        assert ask(client.with_options(max_retries=5)).choices[0].message.content


def test_a_request_that_takes_too_long_ends(model, root):
    with running(served(model, root, seconds=0.15)) as address:
        client = client_of(address)
        with pytest.raises(openai.APIStatusError) as raised:
            ask(client, max_tokens=512, temperature=1.0, seed=1)
        assert (raised.value.status_code, raised.value.code) == (504, "timeout")


def test_without_a_key_only_names_of_this_machine_are_answered(model, root):
    open_here = served(model, root, key="", hosts=frozenset({"127.0.0.1", "localhost", "[::1]"}))
    with running(open_here) as address:
        port = address.rpartition(":")[2]
        for host, status in (
            (f"127.0.0.1:{port}", 200), ("LOCALHOST", 200), ("[::1]", 200), (f"evil.example:{port}", 403),
            ("127.0.0.1.evil.example", 403), ("", 403),
        ):  # fmt: skip
            response = httpx.get(f"{address}/v1/models", headers={"Host": host})
            assert response.status_code == status, host
            assert status == 200 or response.json()["error"]["code"] == "unknown_host"


def test_videos_are_spread_over_workers_and_stay_there(model, root):
    given = served(model, root)
    workers = [*given.workers, *served(model, root).workers]
    with running(replace(given, workers=workers)) as address:
        client = client_of(address)
        for name in "abcdabcd":
            assert ask(client, f"{name}.mp4").choices[0].message.content
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    assert sum(worker.counts["videos"] for worker in workers) == 4
    assert all(worker.counts["answers"] % 2 == 0 for worker in workers)
