"""One video, many questions, against opening it for each: seconds, bytes, FLOPs; best of three."""

from __future__ import annotations

from benchmarks.cpu.measure import Comparison, largest
from tests.inference.session_cost import ANSWER, CHUNK, MODELS, TEXT, measure

ROWS = (("tiny", 500), ("tiny", 2000), ("small", 500), ("small", 2000))
FACTS = {"dtype": "float32", "chunk": CHUNK, "text": TEXT, "answer": ANSWER}


def row(model: str, frames: int, small: bool) -> Comparison:
    facts = {"model": model, **measure(MODELS[model], 8 if small else frames, 1 if small else 3)}
    return Comparison((), facts, {}, {}, largest)
