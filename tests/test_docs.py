"""The documentation names what the code has: public names, files, the picture's and README's figures."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import timeviper_fast
import timeviper_fast.video
import tvkernels
from timeviper_fast import preset
from timeviper_fast.inference.plan import plan
from timeviper_fast.stops import STOPS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NINE_B = preset("nemotron-nano-9b-v2")


@pytest.mark.parametrize("package", [tvkernels, timeviper_fast, timeviper_fast.video])
def test_the_reference_has_every_public_name(package):
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("reference/*.md"))
    entries = re.findall(r"^::: ([\w.]+)$", text, re.M)
    assert len(set(entries)) == len(entries)
    # an op's folder bears the op's name, so that its path has the name twice
    named = {entry.rpartition(".")[2] for entry in entries if entry.startswith(package.__name__)}
    assert not set(package.__all__) - named


def test_every_page_is_in_the_navigation():
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r": ([\w/]+\.md)$", text, re.M)) == sorted(pages)


def test_links_between_pages_lead_somewhere():
    wrong = []
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]*)", page.read_text(encoding="utf-8")):
            if link and not link.startswith("https://") and not (page.parent / link).exists():
                wrong.append(f"{page.name} {link}")
    assert not wrong


def test_changelog_and_citation_know_the_version_and_the_papers():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {tvkernels.__version__}\n" in citation
    assert f"\n## {tvkernels.__version__}\n" in changelog
    papers = re.findall(r"arXiv:([\d.]+)", citation)
    assert papers == ["2511.16595", "2501.00574", "2405.21060"]


# the picture


@pytest.fixture(scope="module")
def picture():
    return ElementTree.parse(DOCS / "stops.svg").getroot()


def texts(picture, **attributes):
    return [
        element.text
        for element in picture.iter("{http://www.w3.org/2000/svg}text")
        if all(element.get(name) == value for name, value in attributes.items())
    ]


def test_the_picture_shows_the_stops(picture):
    assert tuple(texts(picture, **{"class": "stop"})) == STOPS


def test_the_picture_shows_every_layer(picture):
    kinds = {"M": "M", "A": "*", "F": "-"}
    cells = [
        kinds[rect.get("class")]
        for rect in picture.iter("{http://www.w3.org/2000/svg}rect")
        if rect.get("class") in kinds and rect.get("height") == "22"
    ]
    assert "".join(cells) == NINE_B.backbone.pattern


def test_the_picture_has_the_numbers_of_the_9b(picture):
    words = " ".join(texts(picture))
    frames = 3600
    tokens = frames * NINE_B.tokens_per_frame
    first, second = NINE_B.stages
    size = NINE_B.vision.image_size
    for expected in (
        f"{frames:,} frames",
        f"{size} x {size} pixels",
        f"{NINE_B.vision.patches_per_frame} patches each",
        f"{NINE_B.tokens_per_frame} tokens each",
        f"{tokens:,} x {NINE_B.backbone.hidden_size:,}",
        f"{tokens:,} to {second.kept_count(tokens):,}",
        f"{first.kept_count(tokens):,} vision tokens",
        f"{second.kept_count(tokens):,} vision tokens",
        f"before layer {first.layer}: {first.keep:.0%}".replace("%", " %"),
        f"before layer {second.layer}: {second.keep:.0%}".replace("%", " %"),
    ):
        assert expected in words


# memory of the 9B


def test_readme_has_the_memory_that_the_plan_gives():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+)[^|]*\| ([\d,]+) \| (\S+) \| (\S+) \| (\S+) \|$", readme, re.M)
    assert len(rows) == 4
    for frames, tokens, *gigabytes in rows:
        count = int(frames.replace(",", ""))
        assert tokens == f"{count * NINE_B.tokens_per_frame:,}"
        made = plan(NINE_B, count)
        exact = (made.exact["session"], sum(made.exact.values()))
        assert gigabytes[:2] == [f"{size / 1e9:.2f}" for size in exact]
        least = float(gigabytes[2])
        assert plan(NINE_B, count, gpu=f"{least}GB").need <= least * 1e9
        with pytest.raises(ValueError, match="fit the memory"):
            plan(NINE_B, count, gpu=f"{least - 0.1:.1f}GB")
