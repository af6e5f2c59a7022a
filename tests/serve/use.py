"""The page as a person uses it."""

from __future__ import annotations

import base64
import time
from pathlib import Path


class Browser:
    """The page as a person uses it."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def open(self):
        self.driver.get(self.url)
        self.until("#main:not([hidden])")

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.one(selector).text

    def until(self, selector, holds=lambda found: bool(found), seconds=20):
        """Wait until what a selector finds holds; return it."""
        ends = time.monotonic() + seconds
        while True:
            found = self.all(selector)
            try:
                if holds(found):
                    return found
            except Exception as error:
                if type(error).__name__ != "StaleElementReferenceException":
                    raise
            if time.monotonic() > ends:
                raise AssertionError(f"{selector}: {[one.text for one in found]}")
            time.sleep(0.05)

    def pick(self, name):
        (button,) = [one for one in self.all(".video") if one.text.splitlines()[0] == name]
        button.click()
        self.until("#question", lambda found: found[0].is_enabled())
        self.until("#frame", lambda found: found[0].is_displayed())
        assert button.get_attribute("aria-pressed") == "true"

    def ask(self, question):
        """Type a question and press Enter; the turn."""
        before = len(self.all(".turn"))
        field = self.one("#question")
        field.send_keys(question)
        field.send_keys("\ue007")
        return self.until(".turn", lambda found: len(found) == before + 1)[-1]

    def answered(self, question):
        """Ask; (the answer's text, the line below it) once it is whole."""
        turn = self.ask(question)
        self.until("#log[aria-busy=false]")
        found = turn.find_elements("css selector", ".answer > .hint")
        assert found, turn.text
        return turn.find_element("css selector", ".text").text, found[0].text

    def overflow(self):
        """Pixels by which the page is wider than the window."""
        return self.driver.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    def console(self):
        return [line["message"] for line in self.driver.get_log("browser")]

    def drop(self, path: Path, kind: str):
        """Let a file fall on the box for files."""
        script = """
            const [data, name, type] = arguments;
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            for (const kind of ["dragenter", "dragover", "drop"]) {
              const event = new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
              document.getElementById("drop").dispatchEvent(event);
            }"""
        data = base64.b64encode(path.read_bytes()).decode()
        self.driver.execute_script(script, data, path.name, kind)

    def settle(self):
        """Wait until the pictures of the timeline and of the evidence are there."""
        script = "return [...document.images].every((image) => image.complete)"
        self.until("#looks img", lambda found: found and self.driver.execute_script(script))
        self.until("#strip img")
        time.sleep(0.5)
