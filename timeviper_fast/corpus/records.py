"""One file for each record, whole or not at all, and the settings that all records share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from timeviper_fast.corpus.attempts import Attempts, hashed
from timeviper_fast.corpus.rows import CorpusRow
from timeviper_fast.errors import fail
from timeviper_fast.evaluation.rows import keep_settings, write_json

__all__ = ["Records"]


class Records:
    """The records of a folder.

    Several processes may write to it at the same time. A record holds no clock, host or order, so
    that two runs give equal bytes.

    Args:
        folder: made when the first record or the settings are written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.attempts = Attempts(self.folder / "attempts")
        self._records = self.folder / "records"
        self._settings = self.folder / "settings.json"

    def get(self, row: CorpusRow) -> dict[str, Any] | None:
        """The record of a row; None if there is none yet.

        Raises:
            ArgumentError: the record of this id is about another video or other questions.
        """
        path = hashed(self._records, row.id, ".json")
        if not path.exists():
            return None
        record: dict[str, Any] = json.loads(path.read_bytes())
        if record["row"] != row.digest:
            rule = f"hold the record of the same video and questions for id {row.id}"
            fail("corpus", "out", rule, f"another one in {path}", "give another folder or id")
        return record

    def put(self, row: CorpusRow, record: Mapping[str, Any]) -> None:
        """Write a row's record; OSError if it cannot be written."""
        write_json(hashed(self._records, row.id, ".json"), record)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All records, sorted by id."""
        found = []
        for path in self._records.glob("??/*.json"):
            if not path.name.startswith("."):
                found.append((json.loads(path.read_bytes())["id"], path))
        for _, path in sorted(found):
            yield json.loads(path.read_bytes())

    def keep_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of all records, or compare them with those that are there.

        Raises:
            ArgumentError: the folder holds records of other settings.
        """
        keep_settings(self._settings, settings, owner="corpus")

    def settings(self) -> dict[str, Any]:
        """The settings of all records.

        Raises:
            ArgumentError: the folder is none of a corpus.
        """
        if not self._settings.is_file():
            fail("corpus", "folder", "be one that `corpus run` has written", str(self.folder))
        settings: dict[str, Any] = json.loads(self._settings.read_text(encoding="utf-8"))
        return settings
