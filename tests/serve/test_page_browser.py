"""The page in a real browser, at the widths of a desk and of a phone.

The embedded model answers about the demo's video, as in `demo --page`. A few questions are answered
by a script instead, so that a test can hold an answer back, or let it be markup.
"""

from __future__ import annotations

import json
from threading import Event, Thread

import pytest
from PIL import Image

from tests.serve.browser import chromium, resize
from tests.serve.page_server import COLOURS, NAME, colour_of, page_server, plain_video
from tests.serve.use import Browser
from timeviper_fast import Answer, TimeViper
from timeviper_fast.demo import DemoVideo
from timeviper_fast.serve.page import Page
from timeviper_fast.serve.worker import Answered, Job, Worker

pytestmark = pytest.mark.long

MARKUP = "<img src=x onerror=\"document.title='hit'\">"
HOSTILE = f"{MARKUP}.mp4"
HELD = "Hold on"
WIDTHS = (1280, 400)


class Script(Worker):
    """Answers some questions by a script, and all others by the model."""

    go_on = Event()

    def submit(self, job: Job) -> None:
        words = job.question.question[-1]["content"]
        if words in (HELD, MARKUP):
            Thread(target=self._say, args=[job, words], daemon=True).start()
        else:
            super().submit(job)

    def _say(self, job: Job, words: str) -> None:
        pieces = ["first ", "last"] if words == HELD else [MARKUP]
        for number, piece in enumerate(pieces):
            if number:
                self.go_on.wait(20)
            job.on_text(piece)
        answer = Answer("".join(pieces), (1,), "stop", (0.0,), (), (), ())
        job.succeed(Answered(answer, 1, 1.0, True))


@pytest.fixture(scope="module")
def model():
    return TimeViper.from_pretrained(NAME)


@pytest.fixture(scope="module")
def made():
    return DemoVideo(0, 32)


@pytest.fixture(scope="module")
def root(tmp_path_factory, made):
    root = tmp_path_factory.mktemp("media")
    made.write(root / "demo.mp4")
    plain_video(root / HOSTILE)
    (root / "broken.mp4").write_bytes(b"no video at all")
    return root


@pytest.fixture(scope="module")
def url(model, root, made):
    examples = {"demo.mp4": [question.text for question in made.questions]}
    page = Page(examples, remember=False)
    with page_server(model, root, page=page, worker=Script, places=1) as url:
        yield url


@pytest.fixture(scope="module", params=WIDTHS)
def browser(request, url, tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile, request.param, dark=request.param == 400) as driver:
        yield Browser(driver, url)


@pytest.fixture
def page(browser):
    """The page, newly loaded; at the end it has the window's width, and the console is empty."""
    browser.open()
    browser.console()
    yield browser
    assert browser.overflow() <= 0
    assert browser.console() == []
    assert browser.driver.title == "Ask a video"


def test_a_video_is_picked_and_shown(page, made):
    assert [one.text for one in page.all(".video .name")] == [HOSTILE, "broken.mp4", "demo.mp4"]
    assert not page.one("#question").is_enabled()
    page.pick("demo.mp4")
    assert page.text("#film-title") == "demo.mp4"
    assert page.text("#facts") == "0:32 · 240 × 240 · 32 frames, the model looks at all"
    assert page.text("#plan-summary").startswith("Plan: at most 8")
    page.until(
        "#strip img",
        lambda found: (
            len(found) == (10 if page.driver.execute_script("return innerWidth") > 700 else 6)
        ),
    )
    assert [one.text for one in page.all("#examples button")] == [q.text for q in made.questions]


def test_questions_are_answered_with_evidence_and_one_session(page, model, root, made):
    """What the page shows is what a session of its own says of the same video."""
    page.pick("demo.mp4")
    session = model.open(root / "demo.mp4")
    for number, question in enumerate(made.questions):
        text, line = page.answered(question.text)
        own = session.ask(question.text)
        assert text == own.text == question.answer
        # a page that was loaded before has read the video for all
        assert number == 0 or "the video was read before" in line
        kept = f"{own.stages[-1].after} of {own.stages[0].before} vision tokens kept"
        assert line.endswith(kept)
        evidence = own.evidence
        first = max(range(32), key=lambda n: evidence.mass[n])
        share = round(100 * evidence.mass[first] / evidence.vision_mass)
        page.until(
            "#looks .look",
            lambda found, at=first, part=share: found and found[0].text == f"0:{at:02} {part} %",
        )
        page.until("#frame-caption", lambda found, at=first: found[0].text == f"0:{at:02}")
        # the tallest bar stands over its second: 1000 units for 32 s
        bars = [
            (float(b.get_attribute("height")), float(b.get_attribute("x")))
            for b in page.all("#bars .bar")
        ]
        assert max(bars)[1] == pytest.approx(1000 * first / 32, abs=0.1)
        assert max(bars)[0] == pytest.approx(86)
        assert f"0:{first:02} ({share} %)" in page.one("#bars").get_attribute("aria-label")
    # the evidence of an earlier answer again
    buttons = page.all(".answer > button")
    assert [b.get_attribute("aria-pressed") for b in buttons] == ["false", "false", "true"]
    buttons[0].click()
    page.until("#evidence-note", lambda found: made.questions[0].text in found[0].text)
    assert buttons[0].get_attribute("aria-pressed") == "true"


def test_the_frame_that_is_shown_is_the_one_of_its_second(page, root):
    page.pick(HOSTILE)
    for second in (4, 1):
        page.driver.execute_script(
            "const s = document.getElementById('scrub'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input', { bubbles: true }));",
            second,
        )
        page.until("#frame-caption", lambda found, at=second: found[0].text == f"0:0{at}")
        _, colour = colour_of(page.one("#frame").get_attribute("src"))
        assert colour == pytest.approx(COLOURS[second], abs=12)


def test_an_answer_streams_and_can_be_stopped(page):
    page.pick("demo.mp4")
    Script.go_on.clear()
    turn = page.ask(HELD)
    page.until(".turn .text", lambda found: found[-1].text.strip() == "first")
    assert page.text("#send") == "Stop"
    assert page.one("#log").get_attribute("aria-busy") == "true"
    Script.go_on.set()
    page.until(".turn .text", lambda found: found[-1].text == "first last")
    page.until("#log[aria-busy=false]")
    assert "no evidence" in page.text("#evidence-note")
    Script.go_on.clear()
    turn = page.ask(HELD)
    page.until(".turn .text", lambda found: found[-1].text.strip() == "first")
    page.one("#send").click()
    page.until("#log[aria-busy=false]")
    assert [line.strip() for line in turn.text.split("\n")] == [HELD, "first", "Stopped."]
    Script.go_on.set()
    assert page.one("#send").text == "Ask"


def test_what_was_said_before_is_sent_only_when_it_is_wanted(page, made):
    page.pick("demo.mp4")
    page.driver.execute_script("""
        window.sent = [];
        const own = window.fetch;
        window.fetch = (path, options) => {
          if (path === "/v1/chat/completions") window.sent.push(JSON.parse(options.body));
          return own(path, options);
        };""")
    question, answer = made.questions[0].text, made.questions[0].answer
    page.answered("Alone?")
    page.one("#anew").click()
    page.answered(question)
    page.answered("Alone again?")
    page.one("#anew").click()
    page.answered(question)
    page.one("#remember").click()
    page.answered("And then?")
    page.one("#anew").click()
    assert page.all(".turn") == []
    page.answered("Again?")
    part = {"type": "video_url", "video_url": {"url": "demo.mp4"}}

    def first(text):
        return {"role": "user", "content": [part, {"type": "text", "text": text}]}

    said = [one["messages"] for one in page.driver.execute_script("return window.sent")]
    follow = [{"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    alone = [[first(text)] for text in ("Alone?", question, "Alone again?", question)]
    assert said == [*alone, [first(question), *follow], [first("Again?")]]


@pytest.mark.parametrize("way", ["dropped", "chosen"])
def test_a_file_of_ones_own_is_sent(page, tmp_path, made, way):
    path = made.write(tmp_path / f"{MARKUP} own.mp4")
    if way == "dropped":
        page.drop(path, "video/mp4")
    else:
        page.one("#file").send_keys(str(path))
    page.until("#question", lambda found: found[0].is_enabled())
    assert page.text("#film-title") == path.name
    question = made.questions[0]
    text, _ = page.answered(question.text)
    assert text == question.answer
    # the same bytes as the file of the folder: one session for both
    page.until("#looks .look")
    assert page.until(
        "#frame", lambda found: found[0].get_attribute("src").startswith("data:image/jpeg")
    )


def test_an_image_has_no_timeline(page, tmp_path):
    Image.new("RGB", (96, 64), (30, 30, 200)).save(tmp_path / "image.png")
    page.drop(tmp_path / "image.png", "image/png")
    page.until("#question", lambda found: found[0].is_enabled())
    assert page.text("#facts") == "An image · 96 × 64"
    page.until("#frame", lambda found: found[0].is_displayed())
    assert colour_of(page.one("#frame").get_attribute("src"))[1] == pytest.approx(
        (30, 30, 200), abs=12
    )
    page.answered("What is it?")
    page.until("#evidence:not([hidden])")
    assert not page.one("#timeline").is_displayed()


def test_names_and_answers_that_are_markup_stay_text(page):
    page.pick(HOSTILE)
    assert page.text("#film-title") == HOSTILE
    text, _ = page.answered(MARKUP)
    assert text == MARKUP
    assert page.all(".turn")[-1].find_element("css selector", ".asked").text == MARKUP
    page.until("#evidence:not([hidden])")
    sources = [one.get_attribute("src") for one in page.all("img")]
    assert not [source for source in sources if source and source.endswith("/x")]
    assert page.all("[onerror]") == []


def test_a_busy_server_says_when_to_come_again(page, browser):
    """The console tells a refusal of its own accord, which is no error of the page."""
    page.pick("demo.mp4")
    Script.go_on.clear()
    other = page.driver.execute_async_script(
        """const [body, done] = arguments;
        window.other = new AbortController();
        fetch("/v1/chat/completions", { method: "POST", body, signal: window.other.signal,
          headers: { "Content-Type": "application/json" } }).then((r) => done(r.status));""",
        json.dumps(body_of(HELD)),
    )
    assert other == 200
    turn = page.ask("What moves?")
    page.until(
        ".answer .trouble", lambda found: found and "wait already; try again in" in found[0].text
    )
    again = turn.find_element("css selector", "button")
    assert (again.text, again.is_enabled()) == ("Try again", False)
    page.driver.execute_script("window.other.abort()")
    Script.go_on.set()
    page.until(".answer button", lambda found: found[0].is_enabled())
    again.click()
    page.until("#log[aria-busy=false]")
    page.until(".answer > .hint")
    assert page.all(".answer .trouble") == []
    assert all("429" in line for line in page.console())


def body_of(question):
    part = {"type": "video_url", "video_url": {"url": "demo.mp4"}}
    content = [part, {"type": "text", "text": question}]
    return {"model": NAME, "messages": [{"role": "user", "content": content}], "stream": True}


def test_a_video_that_cannot_be_read_or_sent_is_told_in_words(page, tmp_path):
    large = tmp_path / "large.mp4"
    large.write_bytes(b"0" * 1_000_001)
    page.drop(large, "video/mp4")
    told = page.until("#pick-trouble", lambda found: bool(found[0].text))[0].text
    assert told == "large.mp4 has 1.0 MB: this server takes up to 1.0 MB."
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    page.drop(empty, "video/mp4")
    page.until("#pick-trouble", lambda found: found[0].text == "empty.mp4 is empty.")
    assert page.console() == []
    (button,) = [one for one in page.all(".video") if one.text.startswith("broken")]
    button.click()
    page.until("#pick-trouble", lambda found: "broken.mp4" in found[0].text)
    assert not page.one("#question").is_enabled()
    text = tmp_path / "words.txt"
    text.write_text("words")
    page.drop(text, "text/plain")
    page.until("#pick-trouble", lambda found: found[0].text.startswith("the video"))
    assert all("400" in line for line in page.console())


def test_all_of_it_works_from_the_keyboard(page, made):
    """Tab leads from the list over the timeline to the question; Home and End move the frame."""
    from selenium import webdriver

    page.pick("demo.mp4")
    page.until("#strip img")
    page.driver.execute_script("document.querySelector('.video').focus()")
    seen = []
    for _ in range(30):
        focused = page.driver.switch_to.active_element
        name = focused.get_attribute("id") or focused.get_attribute("class")
        seen.append(name)
        if name == "question":
            break
        webdriver.ActionChains(page.driver).send_keys("\ue004").perform()
    order = [seen.index(name) for name in ("video", "file", "scrub", "log", "question")]
    assert order == sorted(order), seen
    scrub = page.one("#scrub")
    scrub.send_keys("\ue010")
    page.until("#frame-caption", lambda found: found[0].text == "0:31")
    assert scrub.get_attribute("aria-valuetext") == "0:32"


def contrast(one, other):
    """The ratio of WCAG 2 between two colours."""

    def light(colour):
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_their_ground(page, made, dark):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    page.pick("demo.mp4")
    page.answered(made.questions[0].text)
    page.driver.execute_script(
        "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
    )
    pairs = page.driver.execute_script("""
        const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
        const found = [];
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
          const element = walker.currentNode.parentElement;
          if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
          let ground = element;
          while (ground && (rgb(getComputedStyle(ground).backgroundColor)[3] ?? 1) < 0.5) ground = ground.parentElement;
          const words = rgb(getComputedStyle(element).color).slice(0, 3);
          const behind = rgb(getComputedStyle(ground ?? document.body).backgroundColor).slice(0, 3);
          found.push([walker.currentNode.data.slice(0, 40), words, behind]);
        }
        return found;""")
    assert len(pairs) > 60
    assert not [pair for pair in pairs if contrast(*pair[1:]) < 4.5]


@pytest.mark.parametrize("width", [320, 400, 719, 720, 1099, 1100, 1920])
def test_no_width_scrolls_sideways(page, made, width):
    page.pick("demo.mp4")
    page.answered(made.questions[0].text)
    page.driver.execute_script(
        "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
    )
    before = page.driver.execute_script("return [innerWidth, innerHeight]")
    resize(page.driver, width, 900)
    assert page.overflow() <= 0
    resize(page.driver, *before)


def test_evidence_of_many_frames_is_summed_to_few_bars(page):
    """Of 1,000 frames every fifth bar has mass, and the last frame stands alone with the most."""
    told = page.driver.execute_async_script("""
        const done = arguments[0];
        import("/page/timeline.js").then(({ clock, drawBars, topFrames }) => {
          const seconds = Array.from({ length: 1000 }, (_, n) => (n < 999 ? n / 2 : 600));
          const mass = seconds.map((_, n) => (n === 999 ? 0.5 : n % 25 === 0 ? 0.0125 : 0));
          const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
          drawBars(svg, { start: 0, end: 700 }, { seconds, mass }, [0]);
          const bars = [...svg.querySelectorAll(".bar")].map((b) => ["x", "height"].map((a) => Number(b.getAttribute(a))));
          done([bars, topFrames({ seconds, mass }, 3), svg.querySelectorAll(".kept").length, clock(3661.25), clock(59.96)]);
        });""")
    bars, frames, kept, *times = told
    assert len(bars) == 41
    # 5 frames to a bar: the last one holds frames 995 to 999
    assert bars[-1] == pytest.approx([1000 * 497.5 / 700, 86])
    assert {round(height, 3) for _, height in bars[:-1]} == {round(86 * 0.0125 / 0.5, 3)}
    # 0.025 of attention a second before the last frame, which lasts 101 s and has 0.005 a second
    assert [(frame["second"], frame["share"]) for frame in frames] == [
        (at, pytest.approx(0.0125)) for at in (0, 12.5, 25)
    ]
    assert (kept, times) == (1, ["1:01:01.3", "1:00"])
