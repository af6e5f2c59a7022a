"""`pytest benchmarks/ --benchmark-only`: the lists BENCHES, one test per case and provider.

A case is measured once, all providers interleaved (rows.py); its figures are the tests' extra
information and the table at the end. What pytest-benchmark times beside that is one call with
everything around it, synchronisation included.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.timing.bench import Case
from benchmarks.timing.measure import Lab, Row
from benchmarks.timing.store import table

LAB = pytest.StashKey[Lab]()
ROWS = pytest.StashKey[dict[str, list[Row]]]()


class Measured:
    """One case's rows, and the calls to time once more."""

    def __init__(self, lab: Lab, rows: list[Row]) -> None:
        self.lab = lab
        self.rows = {row["provider"]: row for row in rows}

    def report(self, provider: str, benchmark: pytest.FixtureRequest) -> None:
        row = self.rows.get(provider) or self.rows["all"]
        reason = row.get("reason")
        if reason and provider == "ours" and reason.startswith("fails the contract"):
            pytest.fail(reason)
        if reason:
            pytest.skip(reason)
        benchmark.extra_info.update(row)
        benchmark.pedantic(self.once, args=(self.lab.ready[provider],), rounds=3)

    def once(self, call) -> None:  # type: ignore[no-untyped-def]
        call()
        if self.lab.gpu:
            torch.cuda.synchronize()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LAB] = Lab(torch.cuda.is_available(), keep=True)
    config.stash[ROWS] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "measured" not in metafunc.fixturenames:
        return
    lab = metafunc.config.stash[LAB]
    cases = [c for bench in metafunc.module.BENCHES for c in bench.cases(small=not lab.gpu)]
    pairs = [(case, provider) for case in cases for provider in lab.names(case)]
    ids = [f"{case.name}-{provider}" for case, provider in pairs]
    metafunc.parametrize(("measured", "provider"), pairs, ids=ids, indirect=["measured"])


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """The case, measured when the first of its providers asks."""
    case: Case = request.param
    lab, rows = request.config.stash[LAB], request.config.stash[ROWS]
    if case.name not in rows:
        rows[case.name] = lab.run(case)
    return Measured(lab, rows[case.name])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = [row for rows in config.stash[ROWS].values() for row in rows]
    if rows:
        terminalreporter.write_line("\n".join(table(rows)))
