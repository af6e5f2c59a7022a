"""Decodes the samples of packs in worker processes, in the packs' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from timeviper_fast.dataset.packing import Pack
from timeviper_fast.dataset.sample import Draw, Sample, Source
from timeviper_fast.errors import COUNT, DataError, fail

__all__ = ["PackLoader"]


class PackLoader:
    """Iterates over (samples, pack).

    Packs are planned in this process and decoded in workers. Their order and content do not depend
    on the number of workers, and no global random state is touched. The packer runs ahead of the
    iteration, so continue a run from the state of the last pack, not from the packer's.

    Args:
        sources: the mixture's sources, in its order.
        packs: a `Packer`, or any iterable of packs.
        workers: number of worker processes; 0 decodes in this process.
        prefetch: packs that each worker decodes ahead.
        on_error: "raise" on a sample that cannot be read, or "skip" it. If a pack has none left,
            its list of samples is empty.

    Attributes:
        skipped: samples that could not be read so far.
        notes: the reasons for the last of them.

    Raises:
        ValueError: an argument breaks its rule.
        DataError: while it is iterated, a sample cannot be read.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        packs: Iterable[Pack],
        workers: int = 0,
        prefetch: int = 2,
        on_error: str = "raise",
    ) -> None:
        if not COUNT.holds(workers):
            fail("PackLoader", "workers", COUNT.rule, workers)
        if not COUNT.holds(prefetch) or not prefetch:
            fail("PackLoader", "prefetch", "be an integer above 0", prefetch)
        if on_error not in ("raise", "skip"):
            fail("PackLoader", "on_error", "be one of raise, skip", on_error)
        self.skipped = 0
        self.notes: list[str] = []
        self._sources, self._packs = tuple(sources), packs
        self._workers, self._prefetch, self._on_error = workers, prefetch, on_error

    def __iter__(self) -> Iterator[tuple[list[Sample], Pack]]:
        given: deque[Pack] = deque()
        loader: DataLoader[list[Sample | DataError]] = DataLoader(
            _Draws(self._sources),
            sampler=_Order(self._packs, given),
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=self._prefetch if self._workers else None,
            collate_fn=list,
            # without a generator the loader draws a seed from the global random state
            generator=torch.Generator(),
        )
        for loaded in loader:
            pack = given.popleft()
            samples = [sample for sample in loaded if isinstance(sample, Sample)]
            faults = [fault for fault in loaded if isinstance(fault, DataError)]
            if faults and self._on_error == "raise":
                raise faults[0]
            self.skipped += len(faults)
            self.notes = [*self.notes, *map(str, faults)][-20:]
            yield samples, pack


class _Draws(Dataset[list[Sample | DataError]]):
    """The samples of a pack's draws; a DataError stands in for one that cannot be read.

    Errors are returned, because an exception raised in a worker would arrive as text.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def __getitem__(self, draws: tuple[Draw, ...]) -> list[Sample | DataError]:
        loaded = [self._load(draw) for draw in draws]
        return _in_one_storage(loaded) if get_worker_info() else loaded

    def _load(self, draw: Draw) -> Sample | DataError:
        try:
            return self._sources[draw.source].load(draw.index, draw)
        except DataError as error:
            return error


class _Order(Sampler[tuple[Draw, ...]]):
    """The packs' draws. The packs stay in this process, because their states are large."""

    def __init__(self, packs: Iterable[Pack], given: deque[Pack]) -> None:
        self._packs, self._given = packs, given

    def __iter__(self) -> Iterator[tuple[Draw, ...]]:
        for pack in self._packs:
            self._given.append(pack)
            yield pack.draws


def _in_one_storage(loaded: list[Sample | DataError]) -> list[Sample | DataError]:
    """Move the samples' pixels and features into one tensor for each shape.

    A worker sends each storage as an open file, and the default limit is 1,024 open files.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, sample in enumerate(loaded):
        if isinstance(sample, Sample) and sample.vision is not None:
            kind = (sample.pixels is None, sample.vision.dtype, sample.vision.shape[1:])
            groups.setdefault(kind, []).append(i)
    loaded = list(loaded)
    for (has_features, *_), numbers in groups.items():
        name = "features" if has_features else "pixels"
        samples = [sample for i in numbers if isinstance(sample := loaded[i], Sample)]
        together = torch.cat([x for sample in samples if (x := sample.vision) is not None])
        parts = together.split([sample.frames for sample in samples])
        for i, sample, part in zip(numbers, samples, parts):
            loaded[i] = replace(sample, **{name: part})
    return loaded
