"""Videos that requests name or bring: where they may lie, and how large they may be."""

from __future__ import annotations

import base64
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest

from timeviper_fast.errors import ArgumentError
from timeviper_fast.serve.faults import Fault
from timeviper_fast.serve.media import MediaRoot


def refused(media: MediaRoot, url: str) -> tuple[int, str | None]:
    with pytest.raises(Fault) as raised:
        media.find(url)
    return raised.value.status, raised.value.code


def brought(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_one_video_by_path_by_address_and_by_its_bytes(media, root):
    found = media.find("a.mp4")
    assert (found.name, found.source) == ("a.mp4", root.resolve() / "a.mp4")
    for url in (
        "./a.mp4", "x/../a.mp4", str(root / "a.mp4"), f"file://{root}/a.mp4",
        f"FILE://localhost{root}/%61.mp4",
    ):  # fmt: skip
        assert media.find(url) == found
    inline = media.find(brought((root / "a.mp4").read_bytes()))
    assert (inline.digest, inline.path) == (found.digest, None)
    assert inline.source == (root / "a.mp4").read_bytes()
    assert media.find("b.mp4").digest != found.digest


def test_nothing_but_files_of_the_folder_is_found(tmp_path):
    films = tmp_path / "films"
    (films / "inner").mkdir(parents=True)
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (films / "a.mp4").write_bytes(b"film")
    (films / "inside").symlink_to(films / "a.mp4")
    (films / "outside").symlink_to(tmp_path / "secret.mp4")
    (films / "up").symlink_to("..")
    (films / "loop").symlink_to("loop")
    os.mkfifo(films / "pipe")
    media = MediaRoot(films, 100)
    assert media.find("inside").name == "a.mp4"
    out = (403, "media_forbidden")
    for url in (
        "../secret.mp4", "/etc/passwd", "outside", "up/secret.mp4", "file:///etc/passwd",
        f"file://{films}/%2e%2e/secret.mp4", "inner/../../secret.mp4", "../gone", "/proc/self/environ",
    ):  # fmt: skip
        assert refused(media, url) == out
    absent = (404, "media_not_found")
    for url in ("gone.mp4", "inner", ".", "pipe", "a.mp4/x", "x" * 300, "~/a.mp4", "loop"):
        assert refused(media, url) in (absent, (400, "invalid_value")), url
    bad = (400, "invalid_value")
    for url in ("", " ", "a\0b", "\ud800"):
        assert refused(media, url) == bad


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.mp4", "https://x.y/a.mp4", "rtsp://x/y", "concat:a.mp4", "ftp://x/a",
        "file://elsewhere/a.mp4", "file://[/a.mp4", "data:video/mp4,plain", "data:text/html;base64,AA",
    ],
)  # fmt: skip
def test_other_addresses_are_refused(media, url):
    status, code = refused(media, url)
    assert (status, code in ("unsupported_url", "invalid_value")) == (400, True)


def test_bytes_in_a_request_are_bounded_and_checked(media):
    assert refused(media, brought(bytes(10**6 + 3))) == (413, "video_too_large")
    assert refused(media, "data:video/mp4;base64,a*b=") == (400, "invalid_base64")
    assert refused(media, "data:video/mp4;base64,\u00e9\u00e9\u00e9\u00e9") == (
        400,
        "invalid_base64",
    )
    for data in (b"", b"\x93NUMPY rest", b"PK\x03\x04 rest"):
        assert refused(media, brought(data)) == (400, "invalid_video")
    assert media.find(brought(bytes(10**6))).data == bytes(10**6)


def test_a_file_that_is_written_to_is_noticed(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    media = MediaRoot(tmp_path, 100)
    first = media.find("a.mp4")
    first.check_unchanged()
    path.write_bytes(b"other")
    with pytest.raises(Fault, match=r"a\.mp4 was written to") as raised:
        first.check_unchanged()
    assert raised.value.status == 409
    assert media.find("a.mp4").digest != first.digest


def test_the_folder_must_be_one(tmp_path):
    with pytest.raises(ArgumentError, match="media_root must be a folder"):
        MediaRoot(tmp_path / "gone", 1)


def test_the_roots_own_name_is_not_told(root):
    """A guess of it is refused as any other path that leads out; whole paths are known already."""
    media = MediaRoot(root, 10**6)
    for guess in (
        f"../{root.name}/a.mp4",
        f"x/../../{root.name}/a.mp4",
        f"/proc/self/root{root}/a.mp4",
    ):
        assert refused(media, guess) == (403, "media_forbidden")
    assert media.find(f"{root}/a.mp4").name == media.find("x/../a.mp4").name == "a.mp4"


def test_names_that_look_like_urls_are_names(tmp_path, root):
    copy = tmp_path / "Part1:intro.mp4"
    copy.write_bytes((root / "a.mp4").read_bytes())
    media = MediaRoot(tmp_path, 10**6)
    assert media.find("Part1:intro.mp4").path == copy
    assert refused(media, "Part2:intro.mp4") == (400, "unsupported_url")


def test_a_file_whose_time_was_set_back_is_read_again(tmp_path, root):
    path = tmp_path / "a.mp4"
    path.write_bytes((root / "a.mp4").read_bytes())
    media, found = MediaRoot(tmp_path, 10**6), path.stat()
    before = media.find("a.mp4").digest
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert media.find("a.mp4").digest != before


def test_requests_for_one_file_read_it_once(root, monkeypatch):
    reads, go = [], threading.Event()

    def slow(path):
        reads.append(path)
        go.wait(10)
        return sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("timeviper_fast.serve.media._sha256", slow)
    media = MediaRoot(root, 10**6)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(media.find, "a.mp4") for _ in range(4)]
        go.set()
        assert len({one.result(10).digest for one in found}) == len(reads) == 1


def test_a_file_that_cannot_be_read_is_tried_again(root, monkeypatch):
    def broken(path):
        raise PermissionError(13, "Permission denied")

    media = MediaRoot(root, 10**6)
    with monkeypatch.context() as patch:
        patch.setattr("timeviper_fast.serve.media._sha256", broken)
        assert refused(media, "a.mp4") == (404, "media_not_found")
    assert media.find("a.mp4").digest
