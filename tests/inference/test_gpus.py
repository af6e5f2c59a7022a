"""GPUs by name, and memory sizes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from timeviper_fast.inference.gpus import GPUS, find_gpu


def test_every_gpu_has_its_figures_and_their_source():
    for name, gpu in GPUS.items():
        assert name == gpu.name == name.lower()
        assert gpu.source.startswith(("NVIDIA", "AMD"))
        # FLOPs per byte of memory: below 40 no matrix unit, above 500 a figure with sparsity
        assert 40 < gpu.flops / gpu.bandwidth < 500
        assert find_gpu(name.upper()) is gpu


def test_the_page_has_every_gpu_with_its_figures():
    page = (Path(__file__).parents[2] / "docs" / "planner.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.*)` \| (.*) \| (.*) \| (.*) \| (.*) \|$", page, re.M)
    shown = {
        name: (float(gb), float(tflops.replace(",", "")), float(rate.replace(",", "")), source)
        for name, gb, tflops, rate, source in rows
    }
    assert shown == {
        gpu.name: (gpu.memory / 1e9, gpu.flops / 1e12, gpu.bandwidth / 1e9, gpu.source)
        for gpu in GPUS.values()
    }


@pytest.mark.parametrize(
    ("text", "memory"), [("24GB", 24e9), ("24 gb", 24e9), ("79.6Gb", 79.6e9), ("141GB", 141e9)]
)
def test_a_size_has_memory_and_no_speed(text, memory):
    gpu = find_gpu(text)
    assert (gpu.memory, gpu.flops, gpu.bandwidth) == (memory, 0, 0)


@pytest.mark.parametrize("text", ["", "0GB", "24", "h100x", "24GiB", "-3GB"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match=r"gpu must be one of b200, .*, or a size as 24GB, got"):
        find_gpu(text)
