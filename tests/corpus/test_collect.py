"""One file of all answers: the same bytes for the same records."""

from __future__ import annotations

import json

import pyarrow.parquet
import pytest

from tests.corpus.common import rows, worker
from timeviper_fast.corpus.collect import collect
from timeviper_fast.corpus.records import Records
from timeviper_fast.corpus.run import run_corpus
from timeviper_fast.errors import ArgumentError


def test_parquet_and_json_lines_hold_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("timeviper_fast.corpus.collect._GROUP", 4)
    asked, files = rows(tmp_path), []
    for name, order in (("a", asked), ("b", asked[::-1])):
        run_corpus(worker(tmp_path / name), order)
        assert collect(Records(tmp_path / name), tmp_path / f"{name}.parquet") == 9
        assert collect(Records(tmp_path / name), tmp_path / f"{name}.jsonl") == 9
        files.append([(tmp_path / f"{name}{end}").read_bytes() for end in (".parquet", ".jsonl")])
    assert files[0] == files[1]
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert table == [json.loads(line) for line in (tmp_path / "a.jsonl").open()]
    assert [row["id"] for row in table] == ["broken.mp4", *(f"video-{i // 2}" for i in range(8))]
    assert table[0]["answer"] is None
    assert "broken.mp4" in table[0]["error"]


def test_mistakes(tmp_path):
    with pytest.raises(ArgumentError, match=r"into must be a \.parquet or \.jsonl file"):
        collect(Records(tmp_path), tmp_path / "a.csv")
    with pytest.raises(ArgumentError, match="folder must be one that `corpus run` has written"):
        collect(Records(tmp_path), tmp_path / "a.jsonl")
