"""How many media files the corpus checked, by their outcome, in the summary of the run."""

from __future__ import annotations

from collections import Counter

import pytest

OUTCOME = "outcome of a media file"
"""The property of a test that says whether its file is read exactly, with mended times, or refused."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = terminalreporter.stats.get("passed", [])
    values = [dict(getattr(report, "user_properties", [])).get(OUTCOME) for report in passed]
    counts = Counter(str(value) for value in values if value)
    if counts:
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        terminalreporter.write_line(f"media files of the corpus: {said}")
