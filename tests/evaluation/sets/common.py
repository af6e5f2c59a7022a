"""Small sets of each format, with invented rows, and changes that break them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from timeviper_fast.evaluation.sets.catalogue import read_set
from timeviper_fast.evaluation.sets.row import SetRow
from timeviper_fast.synthetic.pen import SIDE
from timeviper_fast.synthetic.questions import Puzzle, draw_puzzle
from timeviper_fast.synthetic.world import World

OPTIONS = ["A. a red kite", "B. a blue kite", "C. a drum", "D. nothing"]


def write(path: Path, value: Any) -> Path:
    """A .jsonl file with a line for each item, or a .json file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(v) + "\n" for v in value) if lines else json.dumps(value))
    return path


def video_mme(folder: Path, **changes: Any) -> Path:
    row = {"videoID": "kite", "question_id": "900-1", "duration": "short", "task_type": "Colour"}
    row |= {"question": "What flies?", "options": OPTIONS, "answer": "B"}
    other = {**row, "question_id": "900-2", "duration": "long", "answer": "C"}
    write(folder / "subtitle/kite.srt", "")
    return write(folder / "videomme/test.jsonl", [row, other | changes])


def video_mme_v2(folder: Path, **changes: Any) -> Path:
    row = {"video_id": 17, "group_type": "logic", "group_structure": "[1, [2, 3], 4]"}
    row |= {"level": 2, "question": "Why?", "options": "A. wind\nB. rain\n", "answer": "A"}
    rows = [{**row, "question_id": f"900-{i}"} for i in range(1, 5)]
    return write(folder / "test.jsonl", [*rows[:3], rows[3] | changes])


def lv_bench(folder: Path, **changes: Any) -> Path:
    row = {"uid": "7", "question": "Who waits?\n(A) a cook\n(B) a nurse\n(C) a boy", "answer": "C"}
    row |= {"question_type": ["reasoning", "entity"], "time_reference": "00:10-00:20"}
    video = {
        "key": "harbour",
        "qa": [row, {**row, "uid": "8", "question_type": "entity"} | changes],
    }
    return write(folder / "video_info.meta.jsonl", [{"key": "empty", "qa": []}, video])


def mlvu(folder: Path, **changes: Any) -> Path:
    row = {"video": "9.mp4", "question": "What is cut?", "candidates": ["bread", "paper"]}
    row |= {"answer": "paper", "question_type": "plotQA", "duration": 400.5}
    without = {**row, "candidates": None, "answer": "She cuts paper and leaves."}
    return write(
        folder / "json/1_plotQA.json", [row, without, {**row, "answer": "bread"} | changes]
    )


def long_video_bench(folder: Path, **changes: Any) -> Path:
    row = {"id": "boat_0", "video_id": "boat", "video_path": "boat.mp4", "question": "Where to?"}
    row |= {"candidates": ["north", "south", "west"], "correct_choice": 2, "duration": 900}
    row |= {"question_category": "S2E", "duration_group": 600, "subtitle_path": "boat_en.json"}
    row |= {"starting_timestamp_for_subtitles": 12.5}
    write(folder / "subtitles/boat_en.json", [])
    return write(folder / "lvb_val.json", [row, {**row, "id": "boat_1"} | changes])


def mv_bench(folder: Path, **changes: Any) -> Path:
    row = {"video": "clip.mp4", "question": "What next?", "candidates": ["sit", "run"]}
    row |= {"answer": "run", "start": 1.5, "end": 4.0}
    write(folder / "video/star/Action_Sequence/clip.mp4", "")
    write(folder / "json/state_change.json", [{**row, "start": None, "end": None}])
    return write(folder / "json/action_sequence.json", [row, row | changes])


def perception_test(folder: Path, **changes: Any) -> Path:
    row = {"id": 0, "question": "Is it full?", "options": ["yes", "no", "unknown"]}
    row |= {"answer_id": 1, "area": "physics", "reasoning": "descriptive", "tag": ["solidity"]}
    videos = {"cup": {"mc_question": [row, {**row, "id": 3} | changes]}, "spoon": {"metadata": {}}}
    return write(folder / "all_valid.json", videos)


def charades_sta(folder: Path, text: str = "") -> Path:
    path = folder / "Charades_sta_test.txt"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text or "K1L2M 2.5 10##a person opens a box.\nK1L2M 3 4.25##they wave.\n")
    return path


def question(**changes: Any) -> SetRow:
    """A row with four options; the right one is B."""
    fields: dict[str, Any] = {"set": "video-mme", "id": "1", "where": "here:1", "answer": "B"}
    fields |= {"video": Path("kite.mp4"), "question": "What flies?", "options": tuple(OPTIONS)}
    return SetRow(**fields | changes)


def sentence(**changes: Any) -> SetRow:
    """A row that asks for the span 10 to 20."""
    fields = {"set": "charades-sta", "options": (), "answer": (10.0, 20.0), "question": "they wave"}
    return question(**fields | changes)


def world(folder: Path, videos: int, questions: int, frames: int) -> list[SetRow]:
    """A set in MLVU's format: videos of the synthetic world, and candidates for each question."""
    places, rows, answers = range(frames), [], {}
    for number in range(videos):
        seed = 7_000_000 + 1000 * number
        scene = next(s for s in _scenes(seed, frames, questions) if len(s.questions) == questions)
        pictures = World(seed).render(places, [scene.needles.get(i) for i in places], SIDE)
        path = folder / f"video/1_world/{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, pictures)
        for asked in scene.questions:
            answers.setdefault(asked.task, []).append(asked.answer)
            rows.append({"video": path.name, "question": asked.text, "answer": asked.answer})
            rows[-1]["question_type"] = asked.task
    for row in rows:
        others = dict.fromkeys(a for a in answers[row["question_type"]] if a != row["answer"])
        row["candidates"] = [*sorted([row["answer"], *list(others)[:3]]), "nothing of this"]
    # the questions of a video stand apart
    rows.sort(key=lambda row: row["question"])
    write(folder / "json/1_world.json", rows)
    return read_set("mlvu", folder)


def _scenes(seed: int, frames: int, questions: int) -> Iterator[Puzzle]:
    tasks = ("sign", "colour", "chain", "count")
    for draw in range(seed, seed + 1000):
        yield draw_puzzle(draw, frames, tasks, turns=questions, absent=0)
