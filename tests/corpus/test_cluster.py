"""A corpus on Ray: what it is asked for, with a stand-in, and the real one where it is installed."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest

from tests.corpus.common import rows, worker
from timeviper_fast.corpus.cluster import run_on_ray
from timeviper_fast.corpus.collect import collect
from timeviper_fast.corpus.records import Records
from timeviper_fast.corpus.run import run_corpus
from timeviper_fast.errors import ArgumentError


class Items:
    """A dataset whose rows are mapped in this process, in another order."""

    def __init__(self, items, override_num_blocks):
        assert override_num_blocks == len(items)
        self.items = items

    def map(self, asker, fn_constructor_args, **options):
        self.options = options
        self.asker = asker(*fn_constructor_args)
        return self

    def iter_rows(self):
        yield from map(self.asker, self.items[::-1])


@pytest.fixture
def calls(monkeypatch):
    calls = []
    data = SimpleNamespace(from_items=Items, ActorPoolStrategy=lambda **kw: calls.append(kw))
    context = SimpleNamespace(enable_progress_bars=True)
    data.DataContext = SimpleNamespace(get_current=lambda: context)
    ray = SimpleNamespace(data=data, init=lambda **kw: calls.append(kw))
    ray.shutdown = lambda: calls.append("shutdown")
    ray.cluster_resources = lambda: {"CPU": 3.0}
    monkeypatch.setitem(sys.modules, "ray", ray)
    return calls


def test_what_ray_is_asked_for(tmp_path, calls):
    asked, steps = rows(tmp_path), []
    counts = run_on_ray(
        partial(worker, tmp_path / "a"), asked, workers=2, progress=lambda *s: steps.append(s)
    )
    assert counts == Counter(answered=4, error=1)
    assert steps[-1] == ("videos", 5, 5)
    assert calls[0]["num_cpus"] == 3
    assert calls[1:] == [{"size": 2, "max_tasks_in_flight_per_actor": 1}, "shutdown"]
    run_corpus(worker(tmp_path / "b"), asked)
    for name in "ab":
        collect(Records(tmp_path / name), tmp_path / f"{name}.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_cluster_that_runs_has_its_own_cpus(tmp_path, calls):
    run_on_ray(partial(worker, tmp_path / "a"), rows(tmp_path), workers=2, address="auto")
    assert (calls[0]["address"], calls[0]["num_cpus"]) == ("auto", None)


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match="workers must be a positive integer, got 0"):
        run_on_ray(partial(worker, tmp_path), [], workers=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ArgumentError, match=r"ray must be installed.*timeviper-fast\[ray\]"):
        run_on_ray(partial(worker, tmp_path), [], workers=1)


@pytest.mark.parametrize(("workers", "gpus", "name"), [(3, 0, "CPU"), (2, 1, "GPU")])
def test_a_cluster_that_is_too_small_is_refused_and_left(tmp_path, calls, workers, gpus, name):
    rule = rf"workers must fit a cluster of \d {name}s \(\d are needed\), got {workers}"
    with pytest.raises(ArgumentError, match=rule):
        run_on_ray(
            partial(worker, tmp_path), rows(tmp_path), workers=workers, gpus=gpus, address="auto"
        )
    assert calls[-1] == "shutdown"
