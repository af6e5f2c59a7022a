"""The page in a browser, where a server has a key, ends, or has one video alone."""

from __future__ import annotations

import pytest

from tests.serve.browser import chromium
from tests.serve.page_server import NAME, page_server, plain_video
from tests.serve.use import Browser
from timeviper_fast import TimeViper
from timeviper_fast.serve.page import Page

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def model():
    return TimeViper.from_pretrained(NAME)


@pytest.fixture
def root(tmp_path):
    return plain_video(tmp_path / "media" / "one.mp4").parent


def test_the_only_video_is_shown_at_once(model, root, tmp_path):
    with (
        page_server(model, root, page=Page()) as url,
        chromium(tmp_path / "profile", 400) as driver,
    ):
        page = Browser(driver, url)
        page.open()
        page.until("#frame", lambda found: found[0].is_displayed())
        assert page.text("#film-title") == "one.mp4"
        assert page.one("#remember").is_selected()


def test_a_server_that_has_ended_is_told_in_words(model, root, tmp_path):
    with chromium(tmp_path / "profile", 1280) as driver:
        with page_server(model, root, page=Page()) as url:
            page = Browser(driver, url)
            page.open()
            page.pick("one.mp4")
            page.until("#strip img")
        turn = page.ask("What moves?")
        page.until(".answer .trouble")
        assert "The server does not answer. Is it running?" in turn.text


def test_a_server_with_a_key_asks_for_it(model, root, tmp_path):
    with (
        page_server(model, root, page=Page(), key="open sesame") as url,
        chromium(tmp_path / "profile", 400) as driver,
    ):
        page = Browser(driver, url)
        driver.get(url)
        page.until("#gate:not([hidden])")
        assert not page.one("#main").is_displayed()
        page.one("#key").send_keys("wrong\ue007")
        page.until("#gate-trouble", lambda found: "key is missing or wrong" in found[0].text)
        page.one("#key").clear()
        page.one("#key").send_keys("open sesame\ue007")
        page.until("#main:not([hidden])")
        page.pick("one.mp4")
        assert page.overflow() <= 0
        # nothing of it is kept by the browser
        assert driver.execute_script(
            "return [localStorage.length, sessionStorage.length, document.cookie]"
        ) == [0, 0, ""]
