"""Small videos and their questions, and options to ask them quickly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.random_model import tiny_model
from timeviper_fast.corpus.answer import Options
from timeviper_fast.corpus.records import Records
from timeviper_fast.corpus.rows import CorpusRow, read_rows
from timeviper_fast.corpus.run import Worker
from timeviper_fast.inference.request import Opening

OPTIONS = Options(Opening("fps:1", chunk=64, frame_batch=4), max_new_tokens=3)


def corpus(folder: Path, videos: int = 4, questions: int = 2) -> Path:
    """A questions file about random videos beside it, of which `broken.mp4` is no video."""
    lines = []
    for number in range(videos):
        frames = np.random.default_rng(number).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        np.save(folder / f"{number}.npy", frames)
        asked = [f"What is {i} of {number}?" for i in range(questions)]
        lines.append({"id": f"video-{number}", "video": f"{number}.npy", "questions": asked})
    (folder / "broken.mp4").write_bytes(b"no video")
    lines.insert(1, {"video": "broken.mp4", "questions": ["What?"]})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows(folder: Path, **sizes: int) -> list[CorpusRow]:
    """Its rows."""
    return read_rows(corpus(folder, **sizes))


def worker(folder: Path, **options: object) -> Worker:
    """A worker of a small random model."""
    return Worker(tiny_model(), Records(folder), OPTIONS, **options)  # type: ignore[arg-type]
