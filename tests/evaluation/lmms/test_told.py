"""Lines that the next run reads: answers are kept, errors are asked again."""

from __future__ import annotations

import pytest

from timeviper_fast.evaluation.lmms.query import Query
from timeviper_fast.evaluation.lmms.told import Said, ToldFile

ONE, TWO = (Query("task", "test", i, "What?", "a.mp4") for i in (1, 2))


def test_a_later_answer_takes_the_place_of_an_error(tmp_path):
    path = tmp_path / "answers.jsonl"
    scored = Said(loss=1.5, greedy=True)
    with ToldFile(path) as file:
        file.tell(ONE, Said(error="broken"))
        file.tell(TWO, scored)
        assert file.answers() == {TWO.key: scored}
    with ToldFile(path) as file:
        assert file.answers() == {TWO.key: scored}
        file.tell(ONE, Said("yes", 2))
    # a process that was killed leaves half a line
    path.write_bytes(path.read_bytes() + b'{"task": "ta')
    with ToldFile(path) as file:
        assert file.answers() == {TWO.key: scored, ONE.key: Said("yes", 2)}
    path.write_text('{"task": "task"}\n')
    with pytest.raises(ValueError, match="timeviper_fast: resume must hold rows of a run of lmms"):
        ToldFile(path)
