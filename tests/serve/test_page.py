"""The page's files and routes, asked over HTTP; tests/serve/test_page_browser.py looks at it."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from pathlib import Path

import httpx2 as httpx
import pytest
from PIL import Image

import timeviper_fast
from tests.serve.page_server import COLOURS, NAME, colour_of, data_url, page_server, plain_video
from timeviper_fast import TimeViper
from timeviper_fast.serve.page import PAGE_FILES, Page, PageRoutes
from timeviper_fast.stops import STOPS

STATIC = Path(timeviper_fast.__file__).parent / "serve/static"
HOSTILE = "<img src=x onerror=alert(1)>.mp4"


@pytest.fixture(scope="module")
def model():
    return TimeViper.from_pretrained(NAME)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of videos, beside which another file lies."""
    root = tmp_path_factory.mktemp("media") / "root"
    plain_video(root / HOSTILE)
    plain_video(root / "video.mp4", fps=2)
    (root / "broken.mp4").write_bytes(b"no video at all")
    (root.parent / "secret.mp4").write_bytes((root / "video.mp4").read_bytes())
    (root / "link.mp4").symlink_to(root.parent / "secret.mp4")
    return root


@pytest.fixture(scope="module")
def http(model, root):
    """A client of a server with a page."""
    page = Page({"video.mp4": ("What moves?",)}, remember=False)
    with page_server(model, root, page=page) as url, httpx.Client(base_url=url) as client:
        yield client


def error_of(response, status):
    """The error of a response in the protocol's form, which names no path of the server."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "/tmp" not in error["message"]
    assert "Traceback" not in error["message"]
    return error


# ---- files


@pytest.mark.parametrize("path", PAGE_FILES)
def test_a_file_of_the_page_comes_with_the_strict_policy(http, path):
    response = http.get(path)
    name, kind = PAGE_FILES[path]
    assert response.status_code == 200
    assert response.content == (STATIC / name).read_bytes()
    assert response.headers["content-type"].split(";")[0] == kind
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    # scripts, styles and requests: of this server alone, and none that stand in the page's text
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert policy["img-src"] == "'self' data:"


def test_every_file_is_served_and_names_no_other_host():
    assert sorted(path.name for path in STATIC.iterdir()) == sorted(
        f for f, _ in PAGE_FILES.values()
    )
    texts = {path.name: path.read_text("utf-8") for path in STATIC.iterdir()}
    for name, text in texts.items():
        # a name of XML is no address
        hosts = set(re.findall(r"\w+://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}
        assert not hosts, name
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc"
    assert not [name for name, text in texts.items() if re.search(markup, text)]
    page = texts["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page)
    # what the scripts look for is there
    wanted = set(re.findall(r'\b(?:at|say)\("([\w-]+)"', texts["page.js"]))
    assert wanted
    assert wanted <= set(re.findall(r'\bid="([\w-]+)"', page))


def test_every_field_has_a_label():
    page = (STATIC / "index.html").read_text("utf-8")
    for field in re.findall(r"<(?:input|textarea)\b[^>]*>", page):
        name = re.search(r'id="([\w-]+)"', field)[1]
        labelled = "aria-label=" in field or f'for="{name}"' in page
        assert labelled or re.search(rf"<label[^>]*><input id=\"{name}\"", page), field


def test_without_a_page_nothing_of_it_is_there(model, root):
    with page_server(model, root) as url, httpx.Client(base_url=url) as client:
        for path in (*PAGE_FILES, "/page/start"):
            error_of(client.get(path), 404)
        error_of(client.post("/page/frames", json={"url": "video.mp4", "seconds": [0]}), 404)


# ---- routes


def test_the_start_tells_the_model_the_limit_and_the_videos(http, model, root):
    told = http.get("/page/start").json()
    sizes = {name: (root / name).stat().st_size for name in (HOSTILE, "broken.mp4", "video.mp4")}
    assert told.pop("videos") == [{"name": name, "bytes": size} for name, size in sizes.items()]
    assert told == {
        "model": NAME,
        "note": model.note,
        "upload_bytes": 10**6,
        "examples": {"video.mp4": ["What moves?"]},
        "remember": False,
        "complete": True,
    }


def test_a_film_is_of_a_file_or_of_what_is_sent(http, root):
    told = http.post("/page/film", json={"url": "video.mp4"}).json()
    assert (told["end"], told["frames"], told["asked"], told["size"]) == (6.0, 12, 6, [48, 64])
    assert told["plan"]["frames"] == 6
    sent = http.post("/page/film", json={"url": data_url(root / "video.mp4")}).json()
    assert sent == told


@pytest.mark.parametrize("sent", [False, True])
def test_frames_are_pictures_of_their_seconds(http, root, sent):
    url = data_url(root / HOSTILE) if sent else HOSTILE
    told = http.post("/page/frames", json={"url": url, "seconds": [4, 1.2], "side": 48}).json()
    assert [frame["second"] for frame in told["frames"]] == [4.0, 1.0]
    for frame, number in zip(told["frames"], [4, 1]):
        size, colour = colour_of(frame["image"])
        assert size == (48, 36)
        assert colour == pytest.approx(COLOURS[number], abs=12)


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("../secret.mp4", 403),
        ("link.mp4", 403),
        ("/etc/passwd", 403),
        ("file:///etc/passwd", 403),
        ("absent.mp4", 404),
        (".", 404),
        ("http://127.0.0.1/video.mp4", 400),
        ("concat:video.mp4", 400),
        ("broken.mp4", 400),
        ("data:text/html;base64,AAAA", 400),
        ("data:video/mp4;base64,####", 400),
        ("data:video/mp4;base64,AAAA", 400),
        ("data:video/mp4;base64," + "A" * 1_400_000, 413),
        ("", 400),
        (None, 400),
        (7, 400),
    ],
)
def test_a_video_that_may_not_be_read_is_refused(http, url, status):
    for path, more in (("/page/film", {}), ("/page/frames", {"seconds": [0]})):
        assert error_of(http.post(path, json={"url": url, **more}), status)


def test_a_picture_of_too_many_pixels_is_not_decoded(http, root, tmp_path):
    """Some kilobytes of PNG stand for 49 million pixels; the bound is that of questions."""
    large = tmp_path / "large.png"
    Image.new("1", (7000, 7000)).save(large)
    url = f"data:image/png;base64,{base64.b64encode(large.read_bytes()).decode()}"
    for path, more in (("/page/film", {}), ("/page/frames", {"seconds": [0]})):
        told = error_of(http.post(path, json={"url": url, **more}), 400)
        assert "7000 x 7000 pixels" in told["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"seconds": None}, "seconds"),
        ({"seconds": []}, "seconds"),
        ({"seconds": [0] * 25}, "seconds"),
        ({"seconds": ["0"]}, "seconds"),
        ({"seconds": [True]}, "seconds"),
        ({"seconds": [1e9]}, "seconds"),
        ({"seconds": [10**400]}, "seconds"),
        ({"seconds": 3}, "seconds"),
        ({"side": 0}, "side"),
        ({"side": 961}, "side"),
        ({"side": 32.5}, "side"),
        ({"width": 5}, "width"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(http, change, param):
    body = {"url": "video.mp4", "seconds": [0], **change}
    assert error_of(http.post("/page/frames", json=body), 400)["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        '{"url": "video.mp4"}'.encode("utf-16"),
        b'{"url": "a", "url": "video.mp4"}',
        b'{"url": NaN}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_object_is_refused(http, body):
    sent = http.post("/page/film", content=body, headers={"content-type": "application/json"})
    error_of(sent, 400)


def test_a_body_of_another_type_or_size_is_refused(http):
    error_of(http.post("/page/film", data={"url": "video.mp4"}), 415)
    error_of(http.post("/page/film", json={"url": "x" * 3_000_000}), 413)
    error_of(http.get("/page/film"), 405)
    error_of(http.get("/page/../page.py"), 404)
    error_of(http.get("/page/secret.js"), 404)


def test_another_host_name_is_refused(http):
    for path in ("/", "/page/start"):
        error_of(http.get(path, headers={"host": "evil.example"}), 403)


def test_only_some_videos_are_opened_at_a_time(http, root, monkeypatch):
    """The fifth request is told to come again, and places are free after each end, good or bad."""
    wait, begun = threading.Event(), threading.Semaphore(0)
    made = PageRoutes._made

    def slow(self, *given):
        begun.release()
        assert wait.wait(20)
        return made(self, *given)

    monkeypatch.setattr(PageRoutes, "_made", slow)
    statuses = []

    def ask(url):
        statuses.append(httpx.post(f"{http.base_url}/page/film", json={"url": url}).status_code)

    threads = [threading.Thread(target=ask, args=[url]) for url in ("video.mp4", "absent.mp4") * 2]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=20)
    refused = http.post("/page/film", json={"url": "video.mp4"})
    assert error_of(refused, 429)["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    wait.set()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 404, 404]
    again = [http.post("/page/film", json={"url": "video.mp4"}).status_code for _ in "12345"]
    assert again == [200] * 5


def test_a_client_that_leaves_its_body_half_sent_frees_its_place(http):
    where = (http.base_url.host, http.base_url.port)
    head = "POST /page/film HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    for _ in range(3):
        with socket.create_connection(where) as half:
            half.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    for _ in range(50):
        if http.post("/page/film", json={"url": "video.mp4"}).status_code == 200:
            return
    raise AssertionError("no place became free")


# ---- a key


def test_with_a_key_the_files_are_open_and_nothing_else(model, root):
    with (
        page_server(model, root, page=Page(), key="open sesame") as url,
        httpx.Client(base_url=url) as client,
    ):
        page = client.get("/")
        assert 'data-key="needed"' in page.text
        assert all(client.get(path).status_code == 200 for path in PAGE_FILES)
        ask = {"url": "video.mp4", "seconds": [0]}
        error_of(client.get("/page/start"), 401)
        error_of(client.post("/page/frames", json=ask), 401)
        error_of(client.post("/page/film", json={"url": "video.mp4"}), 401)
        client.headers["authorization"] = "Bearer open sesame"
        assert client.get("/page/start").json()["model"] == NAME
        assert client.post("/page/frames", json=ask).status_code == 200


# ---- what answers bring for the page


def test_an_answer_brings_evidence_and_both_parts_of_its_stops(http):
    asked = {"type": "video_url", "video_url": {"url": "video.mp4"}}
    content = [asked, {"type": "text", "text": "What does the sign say?"}]
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": content}],
        "timeviper": {"evidence": True},
    }
    first, second = (http.post("/v1/chat/completions", json=body).json()["timeviper"] for _ in "12")
    assert (first["held"], second["held"]) == (False, True)
    for told in (first, second):
        stops = {part: {s["name"]: s for s in rows} for part, rows in told["stops"].items()}
        assert set(STOPS) <= set(stops["video"]) & set(stops["question"])
        assert (
            stops["video"]["decode"]["milliseconds"]
            > 0
            == stops["question"]["decode"]["milliseconds"]
        )
        assert (
            stops["question"]["generate"]["milliseconds"]
            > 0
            == stops["video"]["generate"]["milliseconds"]
        )
        evidence = told["evidence"]
        assert evidence["seconds"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        assert sum(evidence["mass"]) + evidence["text_mass"] == pytest.approx(1, abs=1e-3)
    # what was read once took its time once
    assert first["stops"]["video"] == second["stops"]["video"]
    assert json.dumps(first["evidence"]) == json.dumps(second["evidence"])
