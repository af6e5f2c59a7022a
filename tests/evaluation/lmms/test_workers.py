"""A process for each device: the same answers, and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace

import pytest

from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import ArgumentError
from timeviper_fast.evaluation.lmms.asker import Load
from timeviper_fast.evaluation.lmms.query import Options, Query
from timeviper_fast.evaluation.lmms.workers import Here, Workers, answerer

LOAD = Load(TINY, None, None, None, 1)


def groups(paths, questions=2):
    """Groups of numbered queries, one for each video."""
    query = Query("task", "test", 0, "What does the sign say?", None, Options(3))
    return [
        [(questions * i + j, replace(query, doc_id=j, visual=str(path))) for j in range(questions)]
        for i, path in enumerate(paths)
    ]


@pytest.fixture(scope="module")
def two():
    workers = answerer(LOAD, ["cpu", "cpu"])
    yield workers
    workers.close()


def test_two_processes_answer_as_one_model(two, paths):
    assert isinstance(two, Workers)
    alone = answerer(LOAD, ["cpu"])
    assert isinstance(alone, Here)
    found = list(two.answers(groups(paths)))
    assert Counter(place for place, _ in found) == Counter(range(6))
    assert dict(found) == dict(alone.answers(groups(paths)))
    assert two.settings == alone.settings


@pytest.mark.long
def test_a_process_that_dies_costs_the_rest_of_its_group_and_is_started_again(two, paths):
    wanted = dict(two.answers(groups(paths)))
    pids, told = [worker._process.pid for worker in two._workers], {}
    for place, said in two.answers(groups(paths[:2], questions=20)):
        if not told:
            victim = place // 20
            os.kill(pids[victim], signal.SIGKILL)
        told[place] = said
    assert sorted(told) == list(range(40))
    errors = {place: said.error for place, said in told.items() if said.error}
    assert {place // 20 for place in errors} == {victim}
    assert set(errors.values()) == {"the process of cpu ended with exit code -9"}
    assert dict(two.answers(groups(paths))) == wanted


@pytest.mark.long
def test_a_run_that_was_left_leaves_no_answers_behind(two, paths):
    answers = two.answers(groups(paths))
    next(answers)
    answers.close()
    assert sorted(place for place, _ in two.answers(groups(paths[:1]))) == [0, 1]


def test_a_model_that_cannot_be_loaded_is_said_once(tmp_path):
    with pytest.raises(ArgumentError, match="no-model"):
        Workers(Load(str(tmp_path / "no-model"), None, None, None, 1), ["cpu"])
