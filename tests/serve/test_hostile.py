"""Requests that no honest client sends: each is refused with its status, and the server stays well."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import struct
import threading
import time
from contextlib import closing

import httpx2 as httpx
import pytest
from PIL import Image

from tests.serve.common import KEY, body, running, served, small_video, wait_for
from timeviper_fast.serve.worker import Worker

PATH = "/v1/chat/completions"
HEADERS = {"Authorization": f"Bearer {KEY}"}
# in the answer to no request
SECRET = "hidden in here"
# a port of this machine: whoever fetches something knocks there
KNOCKS = "http://127.0.0.1:{port}"


def png(side: int) -> bytes:
    data = io.BytesIO()
    Image.new("1", (side, side)).save(data, "PNG")
    return data.getvalue()


def bomb(film: bytes) -> bytes:
    """A film of some hundred bytes whose table lists four milliards of samples."""
    changed = bytearray(film)
    for kind, skipped, fields in (
        (b"stsz", 8, (1, 2**32 - 1)), (b"stsc", 12, (1, 2**32 - 1, 1)), (b"stts", 12, (2**32 - 1, 1)),
    ):  # fmt: skip
        at = changed.index(kind) + skipped
        changed[at : at + 4 * len(fields)] = struct.pack(f">{len(fields)}I", *fields)
    return bytes(changed)


def inline(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """A server whose folder has links out of it, and a secret beside it."""
    home = tmp_path_factory.mktemp("home")
    films = home / "films"
    films.mkdir()
    small_video(films / "a.mp4", 0)
    small_video(home / "secret.mp4", 1)
    (home / "secret.txt").write_text(SECRET)
    (films / "link.mp4").symlink_to(home / "secret.mp4")
    (films / "up").symlink_to(home)
    (films / "text.mp4").write_text(SECRET)
    (films / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{home}/secret.mp4\n#EXT-X-ENDLIST\n")
    (films / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{home}/secret.mp4'\n")
    workers = [Worker(model, 10**9, most_pixels=100_000)]
    return served(model, films, workers=workers, body_seconds=0.5)


@pytest.fixture(scope="module")
def address(server):
    with running(server) as address:
        yield address


@pytest.fixture(scope="module")
def door():
    """A port that counts who knocks."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    with closing(listening):
        yield listening


def post(address: str, content: bytes | None = None, headers=(), **fields) -> httpx.Response:
    sent = json.dumps(body(**fields)).encode() if content is None else content
    given = {**HEADERS, "Content-Type": "application/json", **dict(headers)}
    return httpx.post(f"{address}{PATH}", content=sent, headers=given, timeout=20)


def refused(response: httpx.Response, status: int, code: str, server) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    for told in (str(server.media.root.parent), SECRET, "Traceback", 'File "', "/tmp/", KEY):
        assert told not in response.text


def urls(server, port: int) -> dict[str, tuple[str, int, str]]:
    """Hostile addresses of videos, with the status and the code of their refusal."""
    root = server.media.root
    film = (root / "a.mp4").read_bytes()
    away = KNOCKS.format(port=port)
    dash = (
        f"<?xml version='1.0'?><!-- {'x' * 9000} --><MPD profiles='urn:mpeg:dash:profile:isoff-live:2011'>"
        f"<Period><BaseURL>{away}/</BaseURL></Period></MPD>"
    ).encode()
    sdp = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 9 RTP/AVP 96\r\n"
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{away}/a.ts\n#EXT-X-ENDLIST\n".encode()
    named = b'{"__metadata__":{"format":"timeviper_fast.features"}}'
    features = struct.pack("<Q", len(named)) + named
    return {
        "a parent": ("../secret.mp4", 403, "media_forbidden"),
        "an absolute path": ("/etc/passwd", 403, "media_forbidden"),
        "an address of a file": (f"file://{root.parent}/secret.mp4", 403, "media_forbidden"),
        "percent signs": (f"file://{root}/%2e%2e/secret.mp4", 403, "media_forbidden"),
        "a link": ("link.mp4", 403, "media_forbidden"),
        "a linked folder": ("up/secret.mp4", 403, "media_forbidden"),
        "a device": ("/dev/zero", 403, "media_forbidden"),
        "a folder": (".", 404, "media_not_found"),
        "a null byte": ("a.mp4\0.txt", 400, "invalid_value"),
        "a long name": ("x" * 5000, 404, "media_not_found"),
        "a page elsewhere": (f"{away}/a.mp4", 400, "unsupported_url"),
        "another protocol": ("concat:/etc/passwd", 400, "unsupported_url"),
        "another host's file": ("file://elsewhere/a.mp4", 400, "unsupported_url"),
        "a text": ("text.mp4", 400, "invalid_video"),
        "a playlist of the folder": ("list.m3u8", 400, "invalid_video"),
        "a list of the folder": ("list.ffconcat", 400, "invalid_video"),
        "a playlist": (inline(hls), 400, "invalid_video"),
        "a hidden playlist": (inline(dash), 400, "invalid_video"),
        "a session description": (inline(sdp), 400, "invalid_video"),
        "features": (inline(features), 400, "invalid_video"),
        "an archive": (inline(b"PK\x03\x04" + bytes(100)), 400, "invalid_video"),
        "large pictures": (inline(png(400), "image/png"), 400, "invalid_video"),
        "a table of milliards": (inline(bomb(film)), 400, "invalid_video"),
        "half a video": (inline(film[: len(film) // 2]), 400, "invalid_video"),
        "too many bytes": (inline(bytes(10**6 + 9)), 413, "video_too_large"),
        "no base64": ("data:video/mp4;base64,%%%%", 400, "invalid_base64"),
    }  # fmt: skip


def test_videos_that_are_none_or_none_of_ours(server, address, door):
    for name, (url, status, code) in urls(server, door.getsockname()[1]).items():
        try:
            refused(post(address, url=url), status, code, server)
        except AssertionError as error:
            raise AssertionError(name) from error
    with pytest.raises(BlockingIOError):
        door.accept()
    healthy(server, address)


def test_bodies_that_are_no_requests(server, address):
    plain = json.dumps(body()).encode()
    for content, headers, status, code in (
        (b"[" * 10**6, {}, 400, "invalid_json"),
        (b'{"a":' * 10**5, {}, 400, "invalid_json"),
        (b"\xff" * 100, {}, 400, "invalid_json"),
        (plain.decode().encode("utf-16-be"), {}, 400, "invalid_json"),
        (plain.replace(b'"max_tokens": 6', b'"max_tokens": 6, "max_tokens": 7'), {}, 400, "invalid_json"),
        (plain.replace(b'"max_tokens": 6', b'"max_tokens": 1e400'), {}, 400, "invalid_value"),
        (plain.replace(b'"max_tokens": 6', b'"seed": ' + b"9" * 4000), {}, 400, "invalid_value"),
        (plain.replace(b"What?", b"\\ud800"), {}, 400, "invalid_value"),
        (plain.replace(b"tiny", b"../../etc/passwd"), {}, 404, "model_not_found"),
        (plain, {"Content-Type": "text/plain"}, 415, "unsupported_type"),
        (plain, {"Content-Encoding": "gzip"}, 415, "unsupported_type"),
        (b" " * (server.most_bytes + 1), {}, 413, "request_too_large"),
        (plain, {"Authorization": "Bearer other"}, 401, "invalid_api_key"),
        (plain, {"Authorization": f"Basic {KEY}"}, 401, "invalid_api_key"),
    ):  # fmt: skip
        refused(post(address, content, headers), status, code, server)
    healthy(server, address)


def raw(address: str, sent: bytes, seconds: float = 5) -> bytes:
    """What comes back of bytes, until the server closes or says nothing more."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
            if b"\r\n\r\n" in received and received.rstrip().endswith((b"}", b"received.")):
                break
    return received


def head(*lines: str, path: str = PATH, method: str = "POST", host: str = "127.0.0.1") -> bytes:
    first = (f"{method} {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json")
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")


def test_half_streams_and_what_is_no_http(server, address):
    key = f"Authorization: Bearer {KEY}"
    for sent, status in (
        (b"\x16\x03\x01\x02\x00\x01\x00\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTQ/1.1\r\n\r\n", 400),
        (head(key, "Content-Length: 5", "Content-Length: 6"), 400),
        (head(key, "Content-Length: -1"), 400),
        (head(key, "X: " + "x" * 10**6), 400),
        (head(key, "Content-Length: 999999999999"), 413),
        # the body never comes, or comes in drops
        (head(key, "Content-Length: 100") + b"{", 408),
        (head(key, "Transfer-Encoding: chunked") + b"5\r\n{", 408),
        # the host is no part of the path that decides who may come in
        (head(path="/metrics", method="GET", host="x/health?"), 401),
        (head(path="/health/../metrics", method="GET"), 401),
        (head(path="//health", method="GET"), 401),
    ):  # fmt: skip
        received = raw(address, sent)
        assert int(received.split(b" ")[1]) == status, (sent[:80], received)
        assert b"Traceback" not in received
    healthy(server, address)


def test_half_heads_keep_nobody_out(server, address):
    """As many connections as there may be, each with half a head."""
    host, port = address.removeprefix("http://").split(":")
    most = server.places.most + 64
    whole = head(path="/health", method="GET", host=f"{host}:{port}")
    connections = [socket.create_connection((host, int(port))) for _ in range(most)]
    for connection in connections:
        connection.sendall(whole[:-10])
    began = time.monotonic()
    for connection in connections:
        connection.settimeout(10)
        while connection.recv(1 << 16):
            continue
        connection.close()
    assert time.monotonic() - began < 5
    healthy(server, address)


def test_who_leaves_in_the_middle_of_a_body_frees_its_place(server, address, caplog):
    host, port = address.removeprefix("http://").split(":")
    key = f"Authorization: Bearer {KEY}"
    connections = [socket.create_connection((host, int(port))) for _ in range(3)]
    for connection in connections:
        connection.sendall(head(key, "Content-Length: 100") + b"{")
    wait_for(lambda: server.places.taken == 3)
    began = time.monotonic()
    for connection in connections:
        connection.close()
    wait_for(lambda: server.places.taken == 0)
    assert time.monotonic() - began < 0.4
    assert not caplog.records
    healthy(server, address)


def test_a_reader_that_never_reads_keeps_nobody_out(server, address):
    """Its answer is in memory whole, at most as long as an answer may be, and its place is free."""
    host, port = address.removeprefix("http://").split(":")
    sent = json.dumps(body(stream=True, max_tokens=50)).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            head(f"Authorization: Bearer {KEY}", f"Content-Length: {len(sent)}") + sent
        )
        time.sleep(0.1)
        healthy(server, address)


def healthy(server, address: str) -> None:
    """It answers, holds no place, and has no more threads than it needs."""
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    response = post(address)
    assert response.status_code == 200
    alone = server.workers[0].model.ask(
        server.media.root / "a.mp4", "What?", policy="fps:1", max_new_tokens=6
    )
    assert response.json()["choices"][0]["message"]["content"] == alone.text
    wait_for(lambda: server.places.taken == 0)
    assert not [thread for thread in threading.enumerate() if re.match("read-ahead", thread.name)]
