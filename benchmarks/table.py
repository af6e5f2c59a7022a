"""The one way in which tables are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> list[str]:
    """The lines of a Markdown table; its last `numbers` columns are aligned to the right."""
    words = len(columns) - numbers
    rule = "|" + "---|" * words + "---:|" * numbers
    first, *rest = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return [first, rule, *rest]
