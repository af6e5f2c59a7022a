"""Hours of stream: four of them as the file of the same frames, a day in constant memory."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace

import pytest
import torch

from timeviper_fast import TimeViper
from timeviper_fast.inference.memory import session_bytes

pytestmark = pytest.mark.long

HOUR = 3600
QUESTION = "What does the sign say?"


def frames(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (count, 48, 48, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def trained() -> TimeViper:
    return TimeViper.from_pretrained("timeviper-fast/tiny", device="cpu")


def memory() -> int:
    """Peak bytes of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def test_four_hours_are_the_file(trained):
    pool = frames(4 * HOUR, 1)
    stream = trained.stream()
    sizes = [1, 7, 16, 100, 333]
    done = 0
    while done < len(pool):
        size = sizes[done % len(sizes)]
        stream.push(pool[done : done + size])
        done = min(done + size, len(pool))
    said = stream.ask(QUESTION, max_new_tokens=8, mention_duration=True)
    assert said.exact
    options = {"policy": "fps:1", "chunk": 1024, "frame_batch": 16, "mention_duration": True}
    whole = trained.ask(pool, QUESTION, max_new_tokens=8, **options)
    assert replace(said, stops=(), notes=()) == replace(whole, stops=(), notes=())


@pytest.mark.parametrize("bounded", ["window:30m", "thin:30m"])
def test_a_day_is_held_in_constant_memory(trained, bounded):
    stream, pool = trained.stream(bounded=bounded), frames(600, 2)
    peaks, held = [], []
    for start in range(0, 24 * HOUR, 600):
        stream.push(pool, range(start, start + 600))
        if start % HOUR == 0:
            held.append(stream.now()._ended.nbytes_on(torch.device("cpu")))
            peaks.append(memory())
    answer = stream.ask(QUESTION, max_new_tokens=4)
    assert not answer.exact
    assert answer.frame_seconds[-1] == 24 * HOUR - 1
    assert len(answer.frame_seconds) <= 1800 * 9 / 8 + 600
    # what is held is never more than the frames of the bound have, and the process stops growing
    most = session_bytes(trained.config, len(stream.before), 1800 * 9 // 8 + 16, "float32")
    assert max(held) <= sum(most.values())
    assert max(peaks) <= peaks[11] + 8 * 2**20
