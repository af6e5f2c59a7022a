"""The pictures of docs/page.md: `python -m tests.serve.page_pictures FOLDER` writes them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.serve.browser import chromium
from tests.serve.page_server import NAME, page_server
from tests.serve.use import Browser
from timeviper_fast import TimeViper
from timeviper_fast.demo import DemoVideo
from timeviper_fast.serve.page import Page

# name: width, height, dark
PICTURES = {"desk": (1280, 880, False), "phone": (400, 1560, True)}


def main(folder: Path) -> None:
    """Ask the demo's questions at both widths, and write a picture of each."""
    model = TimeViper.from_pretrained(NAME)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        made = [DemoVideo(seed) for seed in (0, 1, 2)]
        root = Path(home) / "videos"
        names = [one.write(root / f"demo-{one.seed}-{one.seconds}s.mp4").name for one in made]
        asked = [question.text for question in made[0].questions]
        page = Page({names[0]: asked}, remember=False)
        with page_server(model, root, page=page, upload=64 * 10**6) as url:
            for name, (width, height, dark) in PICTURES.items():
                with chromium(Path(home) / name, width, height, dark=dark) as driver:
                    use = Browser(driver, url)
                    use.open()
                    use.pick(names[0])
                    for question in asked if name == "desk" else asked[2:]:
                        use.answered(question)
                    use.settle()
                    driver.execute_script("scrollTo(0, 0)")
                    _save(driver, folder / f"{name}.png")


def _save(driver: object, path: Path) -> None:
    """A picture of the window with a palette, which takes a third of the bytes."""
    driver.save_screenshot(str(path))
    whole = Image.open(path).convert("RGB")
    whole.quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
