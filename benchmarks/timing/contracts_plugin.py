"""`pytest -p benchmarks.timing.contracts_plugin`: what the contracts need beside pytest-xdist."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# exit code of a process whose GPU is lost: every later test would fail there
LOST = 70
# tensors of 2^31 elements: no two such tests run at a time
FAR = re.compile(r"offsets.*(past|beyond)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not FAR.search(item.name):
        return (yield)
    with folder().joinpath("far").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = yield
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: list[str]) -> None:
    plan = dict(Counter(name.partition("::")[0] for name in ids))
    folder().joinpath("plan").write_text(json.dumps(plan), encoding="utf-8")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In a worker, behind xdist's own hook: the report has been sent."""
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ and lost():
        os._exit(LOST)


def folder() -> Path:
    return Path(os.environ["CONTRACTS_FOLDER"])


def lost() -> bool:
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
