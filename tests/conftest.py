"""What holds for every test: fixed seeds, repeatable hypothesis runs, no way to a model hub.

And the backends of the run. `@triton.jit` reads TRITON_INTERPRET when it decorates, so a process
has one Triton: with TRITON_INTERPRET=1 the interpreter (corrected, tests/interpreter.py), else the
compiler where there is a GPU. A test that asks for `backend` runs on the reference, and on that.
"""

from __future__ import annotations

import os

# read when huggingface_hub is imported; a test that would download fails at once instead
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from hypothesis import settings

from tests import interpreter
from tests.contract import COMPILED, TRITON
from tvkernels import use_backend

if interpreter.INTERPRETED:
    interpreter.install()

# nothing can be counted where there is no Triton
collect_ignore = [] if find_spec("triton") else ["benchmarks/counting"]
BACKENDS = ["reference", "triton"] if TRITON else ["reference"]

settings.register_profile("house", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests of minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test marked `long` runs with --long alone, which is `make long`; its count is reported."""
    if config.getoption("--long"):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
    items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _give_memory_back() -> Iterator[None]:
    """Offsets past 2^31 take gigabytes, which on a GPU are real, and which other processes need."""
    yield
    if COMPILED and torch.cuda.memory_reserved() > 2**30:
        torch.cuda.empty_cache()


@pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in BACKENDS])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend of this run in turn, forced; under Triton, torch.empty is full of NaN."""
    with use_backend(request.param):
        if request.param == "reference":
            yield request.param
        else:
            with interpreter.poisoned_empty():
                yield request.param
