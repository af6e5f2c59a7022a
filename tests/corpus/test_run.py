"""Every row has exactly one record, whatever happens to the processes."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from tests.corpus.common import OPTIONS, rows, worker
from timeviper_fast.corpus.collect import collect
from timeviper_fast.corpus.records import Records
from timeviper_fast.corpus.run import Status, run_corpus, status
from timeviper_fast.errors import ArgumentError


@pytest.fixture
def asked(tmp_path):
    return rows(tmp_path)


def bytes_of(folder):
    collect(Records(folder), folder / "all.jsonl")
    return (folder / "all.jsonl").read_bytes()


def test_a_run_and_the_run_after_it(tmp_path, asked):
    steps = []
    one = worker(tmp_path / "out")
    counts = run_corpus(one, asked, lambda *step: steps.append(step))
    assert counts == Counter(answered=4, error=1)
    assert steps == [("videos", i, 5) for i in range(1, 6)]
    assert status(one.records) == Status(5, 1, 9, 1, 0)
    before = bytes_of(tmp_path / "out")
    assert run_corpus(worker(tmp_path / "out"), asked) == Counter(there=5)
    assert bytes_of(tmp_path / "out") == before


def test_answers_are_those_of_a_session(tmp_path, asked):
    one = worker(tmp_path / "out")
    run_corpus(one, asked[:1])
    session = one.model.open(asked[0].path, **vars(OPTIONS.opening))
    said = session.ask([q.prompt for q in asked[0].questions], max_new_tokens=3)
    (record,) = one.records
    assert [a["answer"] for a in record["answers"]] == [answer.text for answer in said]
    assert (record["frames"], record["error"]) == (6, "")


def test_the_third_attempt_is_an_error_record(tmp_path, asked, monkeypatch):
    def crashes(*_):
        raise MemoryError

    one = worker(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("timeviper_fast.corpus.run.answered", crashes)
        for _ in range(2):
            with pytest.raises(MemoryError):
                run_corpus(one, asked)
    assert status(one.records).begun == 1
    assert run_corpus(one, asked) == Counter(answered=3, error=2)
    (record,) = [r for r in one.records if r["id"] == "video-0"]
    assert record["error"] == "the process ended 2 times while it read this video"
    assert status(one.records).begun == 0


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path, asked, monkeypatch):
    one = worker(tmp_path / "out")
    put = Records.put

    def full(self, row, record):
        if row.id == "video-1":
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, row, record)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "put", full)
        for _ in range(4):
            with pytest.raises(OSError, match="No space"):
                run_corpus(one, asked)
    # not an attempt: the video is not to blame
    assert run_corpus(one, asked) == Counter(there=2, answered=3)
    whole = worker(tmp_path / "whole")
    run_corpus(whole, asked)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_row_that_another_process_works_on_is_left_to_it(tmp_path, asked):
    one = worker(tmp_path / "out")
    with one.records.attempts.claim(asked[0].id):
        assert one(asked[0]) == "busy"
    assert one(asked[0]) == "answered"


def test_other_settings_and_no_tokenizer_are_refused(tmp_path):
    one = worker(tmp_path / "out")
    one.model.tokenizer = None
    with pytest.raises(ArgumentError, match="model must have a tokenizer"):
        type(one)(one.model, one.records, OPTIONS)
    other = type(OPTIONS)(OPTIONS.opening, max_new_tokens=4)
    with pytest.raises(ArgumentError, match=r"same max_new_tokens \(4\), got 3"):
        type(one)(worker(tmp_path / "out").model, one.records, other)
