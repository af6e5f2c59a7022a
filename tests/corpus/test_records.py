"""Records and settings of a folder."""

from __future__ import annotations

import pytest

from tests.corpus.common import rows
from timeviper_fast.corpus.answer import error_record
from timeviper_fast.corpus.records import Records
from timeviper_fast.errors import ArgumentError


def test_records_are_sorted_by_id_and_found_by_row(tmp_path):
    asked, records = rows(tmp_path), Records(tmp_path / "out")
    for row in reversed(asked):
        assert records.get(row) is None
        records.put(row, error_record(row, "no"))
    assert [record["id"] for record in records] == sorted(row.id for row in asked)
    assert records.get(asked[0])["video"] == "0.npy"


def test_a_record_of_other_questions_is_refused(tmp_path):
    records = Records(tmp_path / "out")
    first = rows(tmp_path)[0]
    records.put(first, error_record(first, "no"))
    changed = rows(tmp_path, questions=3)[0]
    said = "out must hold the record of the same video and questions for id video-0"
    with pytest.raises(ArgumentError, match=said):
        records.get(changed)


def test_settings_are_kept_and_compared(tmp_path):
    records = Records(tmp_path / "out")
    with pytest.raises(ArgumentError, match="folder must be one that `corpus run` has written"):
        records.settings()
    records.keep_settings({"policy": "fps:1", "size": (1, 2)})
    Records(tmp_path / "out").keep_settings({"policy": "fps:1", "size": (1, 2)})
    for other in ({"policy": "fps:2", "size": (1, 2)}, {"policy": "fps:1"}):
        with pytest.raises(ArgumentError, match="out must hold rows of the same"):
            records.keep_settings(other)
