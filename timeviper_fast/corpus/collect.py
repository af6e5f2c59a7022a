"""All records as one file: parquet, or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from timeviper_fast.atomic import whole_file
from timeviper_fast.corpus.records import Records
from timeviper_fast.errors import ArgumentError, fail

__all__ = ["collect"]

# rows that are in memory at a time
_GROUP = 10_000


def collect(records: Records, target: str | Path) -> int:
    """Write all answers, one row for each question, sorted by the ids of their records.

    Equal records give equal bytes. Columns: id, video, start, end, frames, duration, question_id,
    question, answer, finish, error.

    Args:
        records: the folder.
        target: a .parquet (extra `parquet`) or .jsonl file; an old one is replaced.

    Returns:
        How many rows were written.

    Raises:
        ArgumentError: another suffix, no pyarrow, or a folder that is none of a corpus.
    """
    target = Path(target)
    if target.suffix not in (".parquet", ".jsonl"):
        fail("corpus", "into", "be a .parquet or .jsonl file", str(target))
    records.settings()
    write = _parquet if target.suffix == ".parquet" else _lines
    with whole_file(target) as partial:
        return write(_rows(records), partial)


def _rows(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for record in records:
        own = {name: record[name] for name in ("id", "video", "start", "end", "frames", "duration")}
        for answer in record["answers"]:
            asked = {"question_id": answer["id"], "question": answer["question"]}
            said = {name: answer[name] for name in ("answer", "finish", "error")}
            yield {**own, **asked, **said}


def _lines(rows: Iterator[dict[str, Any]], path: Path) -> int:
    with path.open("w", encoding="utf-8") as file:
        # written one by one: a corpus may be larger than the memory
        return sum(file.write(json.dumps(row) + "\n") > 0 for row in rows)


def _parquet(rows: Iterator[dict[str, Any]], path: Path) -> int:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        remedy = "install timeviper-fast[parquet], or write a .jsonl file"
        raise ArgumentError("corpus", "pyarrow", "be installed", "none", remedy) from error
    text, number = pyarrow.string(), pyarrow.float64()
    kinds = dict.fromkeys(("id", "video"), text)
    kinds |= {"start": number, "end": number, "frames": pyarrow.int64(), "duration": number}
    kinds |= dict.fromkeys(("question_id", "question", "answer", "finish", "error"), text)
    schema, count = pyarrow.schema(list(kinds.items())), 0
    with ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
            count += len(group)
    return count
