"""Configurations that are about to be timed are compiled first, on all cores at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

__all__ = ["compiled_together"]


@contextlib.contextmanager
def compiled_together(workers: int = os.cpu_count() or 1) -> Iterator[None]:
    """Whatever kernel is tuned in here, anybody's: Triton by itself compiles one by one.

    What does not compile is left to the tuner, which knows what to say of it.
    """
    from triton.runtime import _async_compile
    from triton.runtime.autotuner import Autotuner

    prune, active = Autotuner.prune_configs, _async_compile.active_mode
    pool = ThreadPoolExecutor(workers)

    def pruned(tuner: Any, kwargs: dict[str, Any]) -> Any:
        """Asked for the configurations, the tuner knows the arguments and has timed nothing."""
        configs = prune(tuner, kwargs)
        if active.get() is None and not kwargs.get("warmup"):
            launch = {**tuner.nargs, **kwargs, "warmup": True}
            try:
                with (
                    contextlib.suppress(Exception),
                    _async_compile.AsyncCompileMode(pool, ignore_errors=True),
                ):
                    for config in configs:
                        tuner.fn.run(**{**launch, **config.all_kwargs()})
            finally:
                # an alarm may ring while it waits
                active.set(None)
        return configs

    try:
        with mock.patch.object(Autotuner, "prune_configs", pruned):
            yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
