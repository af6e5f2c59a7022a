"""Whole runs: their output, their exact continuation, and the errors of wrong settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.common import CONFIG, KINDS, run_of
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.training.trainer import train


class Stopped(Exception):
    pass


def stop_at(phase: str, step: int):
    """A progress function that ends a run like a crash after that step."""

    def progress(at):
        if (at.phase, at.step) == (phase, step):
            raise Stopped

    return progress


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def figures(output: Path) -> list[dict]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run's output."""
    output = tmp_path_factory.mktemp("whole") / "run"
    return output, train(run_of(output), KINDS)


def test_a_run_leaves_models_and_metrics_and_no_snapshots(whole):
    output, last = whole
    assert last == output / "2-tuning" / "model"
    assert not list(output.rglob("*step-*"))
    lines = figures(output)
    assert [(line["phase"], line["step"]) for line in lines] == [
        (phase, step) for phase in ("alignment", "tuning") for step in range(1, 7)
    ]
    assert all(line["loss"] > 0 and line["samples"] >= 1 for line in lines)
    assert all(("selection_loss" in line) == (line["phase"] == "tuning") for line in lines)


def test_the_model_it_leaves_loads_with_the_stages_of_its_last_step(whole):
    output, last = whole
    aligned, tuned = (TimeViper.from_pretrained(d) for d in (output / "1-alignment/model", last))
    assert [stage.keep for stage in aligned.config.stages] == [1.0, 1.0]
    assert tuned.config == CONFIG
    assert tuned.backbone.transv[0].alpha.shape == ()


def test_a_phase_changes_the_parts_that_it_trains_and_no_others(whole):
    output, last = whole
    aligned, tuned = weights(output / "1-alignment/model"), weights(last)
    before = TimeViper(CONFIG)
    from timeviper_fast.model.initialize import init_weights

    init_weights(before, seed=0, for_training=True)
    changed = {n for n, v in before.state_dict().items() if not torch.equal(v, aligned[n])}
    assert changed == {name for name in aligned if name.startswith("projector.")}
    same = {name for name, value in aligned.items() if torch.equal(value, tuned[name])}
    # a closed gate passes no gradient to its transfer, whose weights are too small to decay
    assert all(name.startswith("backbone.transv.") for name in same)


@pytest.mark.parametrize(("phase", "step"), [("alignment", 1), ("alignment", 5), ("tuning", 3)])
def test_a_run_that_is_stopped_anywhere_continues_to_the_same_bits(whole, tmp_path, phase, step):
    output, last = whole
    run = run_of(tmp_path / "run")
    with pytest.raises(Stopped):
        train(run, KINDS, progress=stop_at(phase, step))
    continued = train(run, KINDS)
    expected, found = weights(last), weights(continued)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert figures(tmp_path / "run") == figures(output)


def test_a_run_with_workers_and_snapshots_elsewhere_is_the_same(whole, tmp_path):
    run = run_of(tmp_path / "run", workers=1, save_every=100)
    found = weights(train(run, KINDS))
    assert all(torch.equal(value, found[name]) for name, value in weights(whole[1]).items())


def test_what_was_half_written_when_a_run_was_killed_is_not_read(tmp_path, whole):
    run = run_of(tmp_path / "run")
    with pytest.raises(Stopped):
        train(run, KINDS, progress=stop_at("tuning", 5))
    phase = tmp_path / "run" / "2-tuning"
    assert sorted(path.name for path in phase.iterdir()) == ["step-00000002", "step-00000004"]
    (phase / ".step-00000006").mkdir()
    (phase / ".step-00000006" / "state.json").write_text("{")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "tuning", "st')
    found = weights(train(run, KINDS))
    assert all(torch.equal(value, found[name]) for name, value in weights(whole[1]).items())
    assert figures(tmp_path / "run") == figures(whole[0])


def test_a_finished_run_is_not_run_again(whole):
    output, last = whole
    written = (last / "model.safetensors").stat().st_mtime_ns
    assert train(run_of(output), KINDS, progress=stop_at("tuning", 1)) == last
    assert (last / "model.safetensors").stat().st_mtime_ns == written


def test_another_run_does_not_continue_in_its_folder(whole):
    output, _ = whole
    with pytest.raises(ValueError, match="seed must be those of the run in"):
        train(run_of(output, seed=1), KINDS)


def test_a_changed_run_names_what_differs(whole):
    output, _ = whole
    run = run_of(output)
    changed = replace(run, phases=(run.phases[0], replace(run.phases[1], steps=4)))
    with pytest.raises(ValueError, match=r"got phases\.tuning\.steps = 4 \(was 6\)$"):
        train(changed, KINDS)


def test_a_start_that_failed_does_not_claim_the_folder(tmp_path):
    (tmp_path / "run" / "media").mkdir(parents=True)
    with pytest.raises(ValueError, match="preset"):
        train(run_of(tmp_path / "run", model="preset:tiny-for-test"), KINDS)
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(Stopped):
        train(run_of(tmp_path / "run", seed=1), KINDS, progress=stop_at("alignment", 1))
    # no snapshot yet, so another configuration may begin
    with pytest.raises(Stopped):
        train(run_of(tmp_path / "run", seed=2), KINDS, progress=stop_at("alignment", 2))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 2
    assert [line["step"] for line in figures(tmp_path / "run")] == [1, 2]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="output must be new or empty, or the folder of a run"):
        train(run_of(tmp_path), KINDS)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_evaluation_is_the_same_each_time_and_reported(tmp_path):
    run = run_of(
        tmp_path / "run", evaluation={"sources": {"pictures": 1}, "samples": 5, "every": 3}
    )
    run = replace(run, phases=(replace(run.phases[0], learning_rate=1e-30),))
    train(run, KINDS)
    found = [line for line in figures(tmp_path / "run") if line["kind"] == "evaluation"]
    assert [line["step"] for line in found] == [3, 6]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-6)
    assert found[0]["samples"] == 5


def test_a_changed_picture_size_interpolates_the_positions(tmp_path):
    run = run_of(tmp_path / "run")
    sized = (run.phases[0], replace(run.phases[1], image_size=24))
    model = TimeViper.from_pretrained(train(replace(run, phases=sized), KINDS))
    assert model.config.vision.image_size == 24
    assert model.vision.pos_embed.shape == (1, 36, 16)


def test_an_unknown_kind_of_source_is_refused(tmp_path):
    run = run_of(tmp_path / "run", source=[{"name": "pictures", "kind": "films"}])
    with pytest.raises(ValueError, match="kind must be one of pictures, got 'films'"):
        train(run, KINDS)


@pytest.mark.slow
def test_learning_reads_the_pictures_and_shuffled_answers_cannot_be_learnt(tmp_path):
    accuracy = {}
    for shuffled in (False, True):
        phase = {
            "name": "learn",
            "steps": 120,
            "sources": {"pictures": 1.0},
            "learn": ["vision", "projector", "llm", "transv"],
            "learning_rate": 5e-3,
            "transv_learning_rate": 5e-3,
            "tokens_per_pack": 600,
        }
        source = {"name": "pictures", "kind": "pictures", "shuffled": shuffled}
        run = run_of(tmp_path / str(shuffled), phase=[phase], source=[source], log_every=20)
        train(run, KINDS)
        accuracy[shuffled] = figures(tmp_path / str(shuffled))[-1]["sample_accuracy"]
    assert accuracy[False] > 0.9
    assert accuracy[True] < 0.5
