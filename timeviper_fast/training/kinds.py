"""Sources of samples from the [[source]] tables of a run: annotation files, checks and caches.

[[source]]
name = "films"
kind = "conversation"       # caption, detailed, grounding, text
file = "films.jsonl"
media = "films"             # folder of the videos; by default that of the file
sampling = "fps:1"          # uniform, videochat-flash
join = [2, 8]               # long samples of 2 to 8 clips
features = "cache/films"    # keep encoded frames there
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from timeviper_fast.dataset.check import check_rows
from timeviper_fast.dataset.conversation import ConversationSource, TextCounter
from timeviper_fast.dataset.features import FeatureCache, vision_key
from timeviper_fast.dataset.frames import Sampling
from timeviper_fast.dataset.joined import JoinedSource
from timeviper_fast.dataset.kinds import KINDS as ROW_KINDS
from timeviper_fast.dataset.media import MediaIndex
from timeviper_fast.dataset.rows import Fault, Rows
from timeviper_fast.dataset.sample import Sample, Source
from timeviper_fast.errors import ArgumentError, fail
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.training.config import SourceConfig, TrainingConfig

__all__ = ["KINDS", "Setting", "SourceBuilder", "check_sources", "complete_with"]

_TEXT, _SWITCH = ("a string", str), ("true or false", bool)
_OPTIONS: dict[str, tuple[str, type]] = {
    "file": _TEXT,
    "media": _TEXT,
    "sampling": _TEXT,
    "jitter": _SWITCH,
    "join": ("a list [fewest, most] of clips", list),
    "features": _TEXT,
    "mention_duration": _SWITCH,
}


class Setting(NamedTuple):
    """The model and the run that a source is made for.

    Attributes:
        model: the model that is trained.
        folder: the run's folder, which holds the index of the media files.
        on_error: "raise" or "skip".
        learns_vision: whether the vision encoder learns; then encoded frames must not be cached.
    """

    model: TimeViper
    folder: Path
    on_error: str
    learns_vision: bool


SourceBuilder = Callable[[SourceConfig, Setting], Source]


def _from_rows(table: SourceConfig, setting: Setting) -> Source:
    options, config = _checked(table), setting.model.config
    if setting.model.tokenizer is None:
        fail("train", "model", "have a tokenizer", None)
    rows, index = Rows(options["file"], options.get("media")), _index(setting.folder)
    faults = check_rows(rows, table.kind, index)
    if faults and setting.on_error == "raise":
        rule = "have no faulty rows (timeviper-fast train --check lists them), or on_error='skip'"
        raise ArgumentError(f"source {table.name!r}", "file", rule, f"{len(faults)}: {faults[0]}")
    cache = _cache(options.get("features"), setting)
    source = ConversationSource(
        table.name,
        rows,
        config.vision,
        TextCounter(setting.model.tokenizer, config.template),
        kind=table.kind,
        sampling=Sampling(
            options.get("sampling", "fps:1"),
            options.get("jitter", False),
            config.clip_frames,
        ),
        index=index,
        features=cache,
        mention_duration=options.get("mention_duration", config.mention_duration or None),
        template=config.template,
        leave_out=[fault.row for fault in faults if fault.row is not None],
    )
    if "join" in options:
        return JoinedSource(source, tuple(options["join"]), table.name)
    return source


KINDS: dict[str, SourceBuilder] = dict.fromkeys(ROW_KINDS, _from_rows)


def _checked(table: SourceConfig) -> dict[str, Any]:
    owner = f"source {table.name!r}"
    unknown = sorted(table.options.keys() - _OPTIONS.keys())
    if unknown:
        rule = f"be one of {', '.join(sorted(_OPTIONS))}"
        fail(owner, unknown[0], rule, table.options[unknown[0]])
    if "file" not in table.options:
        fail(owner, "file", "be given", None)
    for name, value in table.options.items():
        rule, kind = _OPTIONS[name]
        if not isinstance(value, kind):
            fail(owner, name, f"be {rule}", value)
    return table.options


def _index(folder: Path) -> MediaIndex:
    return MediaIndex(folder / "media")


def _cache(folder: str | None, setting: Setting) -> FeatureCache | None:
    if folder is None or setting.learns_vision:
        return None
    return FeatureCache(Path(folder), vision_key(setting.model))


def check_sources(config: TrainingConfig) -> Iterator[tuple[SourceConfig, list[Fault]]]:
    """Every source that reads an annotation file, with the faults of its rows."""
    for table in config.sources:
        if table.kind in KINDS:
            options = _checked(table)
            rows = Rows(options["file"], options.get("media"))
            yield table, check_rows(rows, table.kind, _index(Path(config.output)))


def complete_with(
    config: TrainingConfig, names: Mapping[str, float], setting: Setting
) -> Callable[[Sample], Sample]:
    """A function that encodes and caches a sample, if its source keeps features."""
    tables = [table for table in config.sources if table.name in names]
    caches = {table.name: _cache(table.options.get("features"), setting) for table in tables}

    def complete(sample: Sample) -> Sample:
        cache = caches.get(sample.name.rpartition(":")[0])
        if cache is None or sample.pixels is None:
            return sample
        return cache.complete(setting.model, sample)

    return complete
