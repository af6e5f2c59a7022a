"""A corpus on Ray: one actor, with a model of its own, for each device.

Ray deals rows out and starts actors anew that died; what is done, and what kills its process, the
records and attempts of the folder know (`run.Worker`).
"""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timeviper_fast.corpus.rows import CorpusRow
from timeviper_fast.corpus.run import Done, Worker
from timeviper_fast.errors import ArgumentError, is_integer
from timeviper_fast.video import Progress

__all__ = ["run_on_ray"]


class _Asker:
    """A worker in an actor: its model is loaded once."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self.worker = make()

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"done": self.worker(pickle.loads(item["row"]))}


def run_on_ray(
    make: Callable[[], Worker],
    rows: Sequence[CorpusRow],
    *,
    workers: int,
    gpus: float = 0,
    address: str | None = None,
    progress: Progress | None = None,
) -> Counter[Done]:
    """As `run_corpus`, with several models at a time: the records are the same, byte for byte.

    Args:
        make: makes a worker, in each actor anew; it is pickled.
        rows: all rows.
        workers: actors, each with a model and one CPU.
        gpus: of each actor; 1 on machines with GPUs.
        address: of a running cluster ("auto"), whose nodes share the folder; None starts one here.
        progress: called with ("videos", done, all).

    Raises:
        ArgumentError: Ray is not installed, `workers` is no positive number, or the cluster has
            too few CPUs or GPUs for them.
    """
    if not is_integer(workers) or workers < 1:
        raise ArgumentError("corpus", "workers", "be a positive integer", workers)
    try:
        import ray
    except ImportError as error:
        remedy = "install timeviper-fast[ray], or start the command in several processes"
        raise ArgumentError("corpus", "ray", "be installed", "none", remedy) from error
    if not rows:
        return Counter()
    # one CPU more than actors: else reading the rows would wait for one for ever
    cpus = None if address else workers + 1
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "warning"}
    ray.init(address=address, num_cpus=cpus, **options)
    try:
        _expect_room(ray.cluster_resources(), workers, gpus)
        counts: Counter[Done] = Counter()
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = progress is None
        # one row a block: an actor takes one video at a time
        packed = [{"row": pickle.dumps(row)} for row in rows]
        items = ray.data.from_items(packed, override_num_blocks=len(packed))
        pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1)
        made = items.map(
            _Asker, fn_constructor_args=(make,), compute=pool, num_cpus=1, num_gpus=gpus
        )
        for number, row in enumerate(made.iter_rows(), 1):
            counts[row["done"]] += 1
            if progress is not None:
                progress("videos", number, len(rows))
        return counts
    finally:
        ray.shutdown()


def _expect_room(resources: Mapping[str, float], workers: int, gpus: float) -> None:
    """Refuse a cluster that would wait for ever for what it does not have."""
    for name, needed in (("CPU", workers + 1), ("GPU", workers * gpus)):
        if (there := resources.get(name, 0)) < needed:
            rule = f"fit a cluster of {there:g} {name}s ({needed:g} are needed)"
            remedy = "start its nodes first, or give fewer workers"
            raise ArgumentError("corpus", "workers", rule, workers, remedy)
