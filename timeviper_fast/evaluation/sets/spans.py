"""The reader of Charades-STA: sentences, and when they happen in a video."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from timeviper_fast.errors import DataError
from timeviper_fast.evaluation.sets.files import find, first, read_lines
from timeviper_fast.evaluation.sets.row import SetRow

__all__ = ["charades_sta"]

_NAMES = ("Charades_sta_test.txt", "charades_sta_test.txt")
_LINE = re.compile(r"(\S+) (\d+(?:\.\d+)?) (\d+(?:\.\d+)?)##(.*\S.*)")


def charades_sta(folder: Path) -> Iterator[SetRow]:
    """Charades_sta_test.txt, Charades_v1/<id>.mp4 or Charades_v1_480/<id>.mp4.

    The text may lie in Charades_anno/. Charades_v1_test.csv beside it has the lengths, if there. A
    line is `VIDEO start end##sentence`. Its id is its number, because equal lines occur.
    """
    for path in find(folder, *_NAMES, *(f"Charades_anno/{name}" for name in _NAMES)):
        lengths = _lengths(path.with_name("Charades_v1_test.csv"))
        lines = [*read_lines(path)]
        while lines and not lines[-1].strip():
            # an editor may have left empty lines at the end
            lines.pop()
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            found = _LINE.fullmatch(line.strip())
            if found is None:
                raise DataError(
                    where, f"the line must be `VIDEO start end##sentence`, not {line!r}"
                )
            video, start, end = found[1], float(found[2]), float(found[3])
            if not start < end:
                raise DataError(where, f"end must lie behind start ({start:g}), not at {end:g}")
            yield SetRow(
                "charades-sta",
                str(number),
                where,
                first(folder, *(f"Charades_v1{size}/{video}.mp4" for size in ("", "_480"))),
                found[4].strip(),
                (),
                (start, end),
                duration=lengths.get(video),
                spans=((start, end),),
            )


def _lengths(path: Path) -> dict[str, float]:
    """{video: seconds} of the table; {} where there is none."""
    if not path.exists():
        return {}
    lengths = {}
    table = csv.DictReader(f"{line}\n" for line in read_lines(path))
    for row in table:
        try:
            lengths[row["id"]] = float(row["length"])
        except (KeyError, TypeError, ValueError) as error:
            fault = "the line must have an id and a length in seconds"
            raise DataError(f"{path}:{table.line_num}", fault) from error
    return lengths
