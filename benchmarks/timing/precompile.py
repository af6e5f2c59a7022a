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
    """Compile all configurations of a kernel in parallel before the autotuner times them.

    This holds for the kernels of any library; Triton alone compiles them one by one. The tuner
    reports configurations that do not compile.
    """
    from triton.runtime import _async_compile
    from triton.runtime.autotuner import Autotuner

    prune, active = Autotuner.prune_configs, _async_compile.active_mode
    pool = ThreadPoolExecutor(workers)

    def pruned(tuner: Any, kwargs: dict[str, Any]) -> Any:
        """The tuner calls this with its arguments known, before it times anything."""
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
                # the alarm of measure.within may interrupt the wait
                active.set(None)
        return configs

    try:
        with mock.patch.object(Autotuner, "prune_configs", pruned):
            yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
