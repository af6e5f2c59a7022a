"""The count of media files that the corpus checked, in the summary of the run."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = terminalreporter.stats.get("passed", [])
    files = [report for report in passed if "test_corpus.py::test_a_file[" in report.nodeid]
    if files:
        terminalreporter.write_line(
            f"media files of the corpus that are read exactly: {len(files)}"
        )
