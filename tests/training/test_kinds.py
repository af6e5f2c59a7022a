"""Sources from the tables of a run: annotation files, faulty rows, joined clips, kept features."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.training.common import run_of, tiny
from timeviper_fast.dataset.sample import Draw, Limits
from timeviper_fast.text.prompt import vision_preface
from timeviper_fast.training.kinds import (
    KINDS,
    Setting,
    check_settings,
    check_sources,
    complete_with,
)
from timeviper_fast.video import write_video


@pytest.fixture
def films(tmp_path):
    """An annotation file with three videos of 4 seconds, two of them sound rows."""
    for name in "abc":
        frames = [torch.full((32, 32, 3), 40 * i, dtype=torch.uint8) for i in range(4)]
        write_video(tmp_path / f"{name}.mp4", frames, 1)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A film."}]
    rows = [{"video": f"{name}.mp4", "conversations": turns} for name in "abc"]
    rows.append({"video": "missing.mp4", "conversations": turns})
    path = tmp_path / "films.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build(tmp_path, films, on_error="skip", learns_vision=False, **options):
    table = {"name": "films", "file": str(films)} | options
    phase = {"name": "a", "steps": 1, "sources": {"films": 1.0}}
    run = run_of(tmp_path / "run", source=[table], phase=[phase])
    setting = Setting(tiny(), tmp_path / "run", on_error, learns_vision)
    return KINDS[run.sources[0].kind](run.sources[0], setting), run, setting


def test_rows_become_samples_and_faulty_ones_are_left_out(tmp_path, films):
    source, _, _ = build(tmp_path, films)
    assert len(source) == 3
    sample = source.limits(Limits(1, 8)).load(0, Draw(0, 0, 0))
    assert sample.pixels.shape == (4, 3, 16, 16)
    assert sample.messages[0]["content"] == "What?"


@pytest.mark.parametrize("options", [{}, {"mention_duration": False}])
def test_the_words_behind_the_frames_are_those_of_the_models_family(tmp_path, films, options):
    """As in `ask`: VideoChat-Flash is told the length unless the source says otherwise."""
    _, run, setting = build(tmp_path, films, **options)
    config = setting.model.config
    setting.model.config = replace(config, template="qwen_2", mention_duration=True)
    source = KINDS[run.sources[0].kind](run.sources[0], setting)
    sample = source.limits(Limits(1, 8)).load(0, Draw(0, 0, 0))
    assert sample.preface == vision_preface("qwen_2", None if options else 4.0, 4)


def test_faulty_rows_stop_a_run_that_does_not_skip(tmp_path, films):
    with pytest.raises(ValueError, match=r"file must have no faulty rows .*got 1: .*missing\.mp4"):
        build(tmp_path, films, on_error="raise")


def test_the_check_lists_them(tmp_path, films):
    _, run, _ = build(tmp_path, films)
    [(table, faults)] = check_sources(run)
    assert table.name == "films"
    assert [fault.where.rpartition(":")[2] for fault in faults] == ["4"]


def test_joined_clips(tmp_path, films):
    source, _, _ = build(tmp_path, films, join=[2, 3])
    sample = source.limits(Limits(1, 64)).load(0, Draw(0, 0, 5))
    assert sample.frames in (8, 12)


def test_features_are_kept_and_the_second_time_nothing_is_decoded(tmp_path, films):
    source, run, setting = build(tmp_path, films, features=str(tmp_path / "kept"))
    complete = complete_with(run, {"films": 1.0}, setting)
    first = source.load(1, Draw(0, 1, 0))
    assert first.pixels is not None
    encoded = complete(first)
    assert encoded.pixels is None
    again = source.load(1, Draw(0, 1, 0))
    assert again.pixels is None
    assert torch.equal(again.features, encoded.features)


def test_a_vision_encoder_that_learns_keeps_no_features(tmp_path, films):
    source, run, setting = build(
        tmp_path, films, learns_vision=True, features=str(tmp_path / "kept")
    )
    sample = complete_with(run, {"films": 1.0}, setting)(source.load(1, Draw(0, 1, 0)))
    assert sample.pixels is not None
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fil": "x"}, "source 'films': fil must be one of features, file"),
        ({"file": 3}, "source 'films': file must be a string, got 3"),
        ({"join": 3}, r"source 'films': join must be a list \[fewest, most\] of clips, got 3"),
        ({"sampling": "all"}, "rule must be one of fps:RATE, uniform, videochat-flash, got 'all'"),
        ({"join": [1, 3]}, "clips must be a tuple"),
    ],
)
def test_mistakes(tmp_path, films, options, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, films, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "films"}, "source 'films': kind must be one of caption, conversation"),
        ({"sampling": "fps:x"}, "source 'films': sampling must be one of fps:RATE"),
        ({"join": [1, 3]}, "source 'films': join must be a tuple"),
        ({"kind": "grounding", "jitter": True}, "source 'films': jitter must be left out"),
        ({"kind": "text", "join": [2, 3]}, "source 'films': kind must be of a kind whose"),
    ],
)
def test_the_check_of_settings_names_the_source_and_its_option(tmp_path, films, options, message):
    table = {"name": "films", "file": str(films)} | options
    phase = {"name": "a", "steps": 1, "sources": {"films": 1.0}}
    with pytest.raises(ValueError, match=message):
        check_settings(run_of(tmp_path / "run", source=[table], phase=[phase]))


def test_a_file_without_rows_is_a_fault(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    table = {"name": "none", "file": str(tmp_path / "none.jsonl")}
    phase = {"name": "a", "steps": 1, "sources": {"none": 1.0}}
    [(_, faults)] = check_sources(run_of(tmp_path / "run", source=[table], phase=[phase]))
    assert [fault.reason for fault in faults] == ["it has no rows"]
