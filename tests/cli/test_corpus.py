"""`corpus run`, `status` and `collect` as commands, and processes that are killed."""

from __future__ import annotations

import json

from tests.cli.common import one_line
from tests.corpus.common import corpus
from timeviper_fast.timeviper import TimeViper


def test_a_folder_of_records(run, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["corpus", "run", corpus(tmp_path), "--model", home / "model", "--out", "out"]
    words += ["--sample", "fps:1", "--max-new-tokens", 2]
    for shard, counts in (("0/2", "answered"), ("1/2", "answered")):
        code, out, err = run(*words, "--shard", shard)
        assert (code, out) == (0, "")
        assert counts in err
    assert run(*words)[2] == "5 there\nwrote out\n"
    told = json.loads(run("corpus", "status", "out", "--json")[1])
    assert told == {"records": 5, "errors": 1, "questions": 9, "unanswered": 1, "begun": 0}
    assert "records with an error" in run("corpus", "status", "out")[1]
    code, out, err = run("corpus", "collect", "out", "--into", "all.parquet")
    assert (code, err) == (0, "all.parquet: 9 answers\n")
    one_line(run(*words, "--sample", "fps:2"), '--out must hold rows of the same policy ("fps:2")')


def test_mistakes_are_one_line_before_the_weights_are_loaded(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TimeViper, "from_pretrained", None)
    words = ["corpus", "run", corpus(tmp_path), "--out", "o"]
    formats = "QUESTIONS must be a .jsonl, .json, .parquet file"
    one_line(run("corpus", "run", "gone.jsonl", "--out", "o"), formats, "got gone.jsonl")
    one_line(run(*words, "--shard", "2/2"), "--shard must be I/N with 0 <= I < N")
    one_line(run(*words, "--ray-address", "auto"), "--ray-address must be left out without --ray")
    one_line(run(*words, "--ray", 0), "--ray must be a positive integer")
    one_line(run(*words, "--sample", "often"), "--sample must")
    one_line(run(*words, "--max-new-tokens", 0), "--max-new-tokens must be")
    one_line(run("corpus", "status", "."), "DIR must be one that `corpus run` has written")
    one_line(run("corpus", "collect", ".", "--into", "a.csv"), "--into must be a .parquet or")
