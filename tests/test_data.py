"""data/README.md lists every recorded file and the tests that read it; checksums are unchanged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DATA = TESTS / "data"


def index() -> dict[str, list[str]]:
    """Name in the index -> the files of tests that read it."""
    rows = {}
    for line in (DATA / "README.md").read_text().splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len([cell for cell in cells if cell]) == 5, line
            rows[cells[0].strip(" `")] = cells[4].replace("`", " ").split()
    return rows


# rows that hold no tensors
PLAIN = ("prompts", "vcf_prompts", "vcf_sampling", "nemotron_vl_prompts")


def test_every_recorded_file_has_a_row() -> None:
    files = {path.name for path in DATA.iterdir()} - {"README.md"}
    tensors = {f"{name}.safetensors" for name in index() if name not in PLAIN}
    assert files == {f"{name}.json" for name in index()} | tensors


@pytest.mark.parametrize("name", index())
def test_every_reader_of_a_row_names_it(name: str) -> None:
    family = f"{name.split('_')[0]}_*"
    for reader in index()[name]:
        text = (TESTS / reader).read_text()
        assert name in text or family in text, f"{reader} does not read {name}"


@pytest.mark.parametrize("name", index())
def test_recorded_tensors_are_unchanged(name: str) -> None:
    about = json.loads((DATA / f"{name}.json").read_text())
    if name not in PLAIN:
        recorded = (DATA / f"{name}.safetensors").read_bytes()
        assert hashlib.sha256(recorded).hexdigest() == about["sha256"]
