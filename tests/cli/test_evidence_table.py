"""The table of scored evidence: a line for each name and reading."""

from __future__ import annotations

import io

from rich.console import Console

from timeviper_fast.cli.evidence_table import print_evidence
from timeviper_fast.evaluation.evidence_score import READINGS, Pointing, evidence_score


def test_hits_stand_beside_chance():
    console = Console(file=io.StringIO(), width=200)
    print_evidence(console, "set", {})
    assert console.file.getvalue() == ""
    hit = Pointing(True, True, 0.5, (0.1, 0.3, 0.2))
    miss = Pointing(False, True, 0.1, (0.3, 0.5, 0.4))
    judged = [dict.fromkeys(READINGS, hit), dict.fromkeys(READINGS, miss)]
    print_evidence(console, "set", {"all": evidence_score(judged)})
    header, *lines = console.file.getvalue().splitlines()
    assert header.split()[:3] == ["set", "masses", "of"]
    assert len(lines) == 3
    assert lines[0].split()[:2] == ["all", "question"]
    for said in ("50.0 % [9.5, 90.5], 1/2", " 20.0 % ", "100.0 %", " 40.0 % ", "30.0 %"):
        assert said in lines[0]
