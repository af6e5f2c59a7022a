"""`python -m tvkernels`: which backend runs each op here, and who provides what models call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tvkernels.core.backend import explain
from tvkernels.integrations import providers


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest word."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = (
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)) for row in (header, *rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Print both tables; -h prints what they are."""
    description = "Print which backend runs each op here, and who provides what models call."
    argparse.ArgumentParser("python -m tvkernels", description=description).parse_args()
    ops = [(row.op, row.device, row.backend, row.reason) for row in explain()]
    found = [(row.library, row.function, row.provider) for row in providers()]
    tables = [
        table(("op", "tensor on", "backend", "why"), ops),
        table(("library", "function", "provided by"), found),
    ]
    sys.stdout.write("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
