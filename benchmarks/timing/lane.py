"""A lane: one of several pytest processes that run the same tests between them.

`pytest -p benchmarks.timing.lane` with a folder in CONTRACT_LANES. Every lane collects all tests
and runs those that none has claimed before it: a claim is a file that one process alone can create.
What it does goes line by line to a file of its own, so that a lane may die: another takes over.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.timing.contracts import WHERE

__all__ = ["LOST"]

# the exit code of a lane whose GPU answers no more: whatever it ran next would fail too
LOST = 70
# what comes first takes longest to compile
FIRST = ("test_ssd_backward", "test_ssd", "test_gated", "test_tome")
# tensors of 2^31 elements: one test at a time
FAR = re.compile(r"offsets.*(past|beyond)")


def folder() -> Path:
    return Path(os.environ[WHERE])


def note(**said: Any) -> None:
    with (folder() / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(said) + "\n")


def claimed(name: str) -> bool:
    """Whether `name` is ours from now on."""
    claim = folder() / hashlib.sha1(name.encode()).hexdigest()
    with contextlib.suppress(FileExistsError):
        claim.touch(exist_ok=False)
        return True
    return False


def importance(item: pytest.Item) -> int:
    places = (n for n, name in enumerate(FIRST) if item.path.name.startswith(name))
    return next(places, len(FIRST))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """No other lane is in here, and none keeps memory from having been."""
    with (folder() / "alone").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=importance)


def pytest_collection_finish(session: pytest.Session) -> None:
    if claimed("the plan"):
        files = Counter(item.nodeid.partition("::")[0] for item in session.items)
        note(plan=dict(files))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed and claimed(report.nodeid):
        note(test=report.nodeid, outcome="failed", seconds=0.0, why=report.longreprtext)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    for item in session.items:
        if not claimed(item.nodeid):
            continue
        note(test=item.nodeid, outcome="began")
        with alone() if FAR.search(item.name) else contextlib.nullcontext():
            # what comes next is not known: another lane may claim it
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    why = report.longreprtext if report.failed else ""
    note(test=report.nodeid, outcome=report.outcome, seconds=report.duration, why=why)
    if report.failed and lost():
        os._exit(LOST)


def lost() -> bool:
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
