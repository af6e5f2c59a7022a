"""Readers of multiple-choice sets, from the files that their authors publish."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from timeviper_fast.errors import FROM_0, TEXT, DataError, Kind, is_integer
from timeviper_fast.evaluation.sets.files import (
    LIST,
    TEXTS,
    Record,
    find,
    first,
    read_json,
    records,
)
from timeviper_fast.evaluation.sets.row import LeftOut, Place, SetRow, Span, with_letters

__all__ = [
    "STRUCTURES",
    "long_video_bench",
    "lv_bench",
    "mlvu",
    "mv_bench",
    "perception_test",
    "video_mme",
    "video_mme_v2",
]

# the structures of Video-MME-v2's logical groups
STRUCTURES = ("[1,2,3,4]", "[1,[2,3],4]", "[[1,2],3,4]")
_NAME = Kind("be a text or a number", lambda v: TEXT.holds(v) or is_integer(v))
_TYPES = Kind(
    "be a text or a list of texts",
    lambda v: TEXT.holds(v) or (isinstance(v, list) and bool(v) and all(map(TEXT.holds, v))),
)
_GROUP = Kind("be relevance or logic", lambda v: v in ("relevance", "logic"))
_QUESTION_ID = Kind(
    "be like 001-1, with a last number from 1 to 4",
    lambda v: isinstance(v, str) and re.fullmatch(r"[^-]+-[1-4]", v) is not None,
)
_OPTION_LINE = re.compile(r"\n(?=\([A-Z]\) )")
# minutes and seconds, or hours in front of them
_REFERENCE = re.compile(r"((?:\d+:)?\d+:\d+)\s*-\s*((?:\d+:)?\d+:\d+)")
# where the videos of MVBench's tasks lie below video/; the whole videos of Charades come first, as
# times of start and end are theirs
_WHOLE = "star/Charades_v1_480"
_MVBENCH = {
    "action_antonym": "ssv2_video",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video",
    "action_prediction": "star/Action_Prediction",
    "action_sequence": "star/Action_Sequence",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Object_Interaction",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}


def video_mme(folder: Path) -> Iterator[SetRow]:
    """Video-MME: videomme/*.parquet (or .jsonl), data/<videoID>.mp4, subtitle/<videoID>.srt."""
    for path in find(folder, "videomme/*.parquet", "*.parquet", "videomme/*.jsonl", "*.jsonl"):
        for record in records(path):
            video = record.get("videoID")
            options = record.lettered("options", record.get("options", TEXTS))
            yield SetRow(
                "video-mme",
                record.get("question_id"),
                record.where,
                folder / "data" / f"{video}.mp4",
                record.get("question"),
                options,
                record.letter("answer", options),
                {"duration": (record.get("duration"),), "task": (record.get("task_type"),)},
                subtitles=_existing(folder / "subtitle" / f"{video}.srt"),
            )


def video_mme_v2(folder: Path) -> Iterator[SetRow]:
    """Video-MME-v2: a parquet (or .jsonl) file, videos <video_id>.mp4, subtitle/<id>.jsonl."""
    for path in find(folder, "*.parquet", "**/*.parquet", "*.jsonl"):
        for record in records(path):
            video, name = record.get("video_id", _NAME), record.get("question_id", _QUESTION_ID)
            lines = [line.strip() for line in record.get("options").splitlines()]
            options = record.lettered("options", [line for line in lines if line])
            kind = record.get("group_type", _GROUP)
            structure = kind if kind == "relevance" else _structure(record)
            yield SetRow(
                "video-mme-v2",
                name,
                record.where,
                first(folder, f"{video}.mp4", f"videos/{video}.mp4", f"data/{video}.mp4"),
                record.get("question"),
                options,
                record.letter("answer", options),
                {"type": (kind,), "level": (str(record.get("level", _NAME)),)},
                subtitles=_existing(folder / "subtitle" / f"{video}.jsonl"),
                place=Place(name[:-2], int(name[-1]), structure),
            )


def lv_bench(folder: Path) -> Iterator[SetRow]:
    """LVBench: video_info.meta.jsonl, a line per video with its questions; all_videos/<key>.mp4.

    The .jsonl file may lie in data/. A `time_reference` that is not two times in order, such as
    "01:20-01:35", gives no span.
    """
    for path in find(folder, "video_info.meta.jsonl", "data/video_info.meta.jsonl"):
        for line in records(path):
            for fields in line.get("qa", LIST):
                record = Record(line.where, fields)
                question, *lines = _OPTION_LINE.split(record.get("question"))
                options = record.lettered("question", [line.strip() for line in lines])
                kinds = record.get("question_type", _TYPES)
                yield SetRow(
                    "lvbench",
                    str(record.get("uid", _NAME)),
                    record.where,
                    folder / "all_videos" / f"{line.get('key')}.mp4",
                    question.strip(),
                    options,
                    record.letter("answer", options),
                    {"task": (kinds,) if isinstance(kinds, str) else tuple(kinds)},
                    spans=_referred(record.fields.get("time_reference")),
                )


def mlvu(folder: Path) -> Iterator[SetRow | LeftOut]:
    """MLVU: json/<n>_<task>.json, video/<n>_<task>/. Rows without candidates are left out: their
    answers are texts, which need a judge."""
    for path in find(folder, "json/*.json"):
        for number, record in enumerate(records(path), 1):
            candidates = record.maybe("candidates", TEXTS)
            if candidates is None:
                yield LeftOut(record.where)
            else:
                yield SetRow(
                    "mlvu",
                    f"{path.stem}/{number}",
                    record.where,
                    folder / "video" / path.stem / record.get("video"),
                    record.get("question"),
                    with_letters(candidates),
                    record.text_of("answer", candidates),
                    {"task": (record.get("question_type"),)},
                    duration=record.maybe("duration", FROM_0),
                )


def long_video_bench(folder: Path) -> Iterator[SetRow]:
    """LongVideoBench: lvb_val.json, videos/, subtitles/. The test set has no truth."""
    for path in find(folder, "lvb_val.json"):
        for record in records(path):
            candidates = record.get("candidates", TEXTS)
            subtitles = record.maybe("subtitle_path", TEXT)
            yield SetRow(
                "longvideobench",
                record.get("id"),
                record.where,
                folder / "videos" / record.get("video_path"),
                record.get("question"),
                with_letters(candidates),
                record.index("correct_choice", candidates),
                {
                    "task": (record.get("question_category"),),
                    "duration": (str(record.get("duration_group", _NAME)),),
                },
                subtitles=subtitles and _existing(folder / "subtitles" / subtitles),
                subtitles_start=record.maybe("starting_timestamp_for_subtitles", FROM_0) or 0.0,
                duration=record.maybe("duration", FROM_0),
            )


def mv_bench(folder: Path) -> Iterator[SetRow]:
    """MVBench: json/<task>.json; videos below video/, or in a folder of the task's name."""
    for path in find(folder, "json/*.json"):
        if path.stem not in _MVBENCH:
            raise DataError(str(path), "the file must be named after a task of MVBench")
        for number, record in enumerate(records(path), 1):
            name, candidates = record.get("video"), record.get("candidates", TEXTS)
            start, end = record.maybe("start", FROM_0), record.maybe("end", FROM_0)
            if start is not None and end is not None and not start < end:
                record.refuse("end", f"lie behind start ({start:g})")
            folders = [_MVBENCH[path.stem], path.stem]
            if folders[0].startswith("star/"):
                folders.insert(0, _WHOLE)
            yield SetRow(
                "mvbench",
                f"{path.stem}/{number}",
                record.where,
                first(folder, *(f"video/{own}/{name}" for own in folders)),
                record.get("question"),
                with_letters(candidates),
                record.text_of("answer", candidates),
                {"task": (path.stem,)},
                start=start,
                end=end,
                fps=3.0 if path.stem == "episodic_reasoning" else None,
            )


def perception_test(folder: Path) -> Iterator[SetRow]:
    """Perception Test: {video: {"mc_question": [...]}} in *valid*.json, videos/<video>.mp4."""
    for path in find(folder, "mc_question_valid.json", "all_valid.json", "*valid*.json"):
        videos = read_json(path)
        if not isinstance(videos, dict):
            raise DataError(str(path), "the file must hold one object")
        for video, value in videos.items():
            held = Record(f"{path}:{video}", value)
            for number, fields in enumerate(held.maybe("mc_question", LIST) or (), 1):
                yield _perceived(folder, video, Record(f"{path}:{video}:row {number}", fields))


def _perceived(folder: Path, video: str, record: Record) -> SetRow:
    options = record.get("options", TEXTS)
    groups: dict[str, tuple[str, ...]] = {"task": (record.get("area"),)}
    groups["reasoning"] = (record.get("reasoning"),)
    return SetRow(
        "perception-test",
        f"{video}/{record.get('id', _NAME)}",
        record.where,
        folder / "videos" / f"{video}.mp4",
        record.get("question"),
        with_letters(options),
        record.index("answer_id", options),
        groups,
    )


def _referred(text: object) -> tuple[Span, ...]:
    """The span of a time reference; () if it is none."""
    found = _REFERENCE.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        return ()
    start, end = (
        sum(60**power * int(part) for power, part in enumerate(reversed(time.split(":"))))
        for time in found.groups()
    )
    return ((float(start), float(end)),) if start <= end else ()


def _structure(record: Record) -> str:
    structure = "".join(str(record.get("group_structure")).split())
    if structure not in STRUCTURES:
        record.refuse("group_structure", f"be one of {' '.join(STRUCTURES)}")
    return structure


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None
