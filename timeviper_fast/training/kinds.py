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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from timeviper_fast.config import TimeViperConfig
from timeviper_fast.dataset.check import check_rows
from timeviper_fast.dataset.conversation import ConversationSource, TextCounter
from timeviper_fast.dataset.features import FeatureCache
from timeviper_fast.dataset.frames import Sampling
from timeviper_fast.dataset.joined import JoinedSource
from timeviper_fast.dataset.kinds import KINDS as ROW_KINDS
from timeviper_fast.dataset.media import MediaIndex
from timeviper_fast.dataset.rows import Fault, Rows
from timeviper_fast.dataset.sample import Limits, Sample, Source
from timeviper_fast.errors import ArgumentError, fail
from timeviper_fast.model.fingerprint import vision_fingerprint
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.training.config import SourceConfig, TrainingConfig
from timeviper_fast.training.start import first_config

__all__ = [
    "CHECKS",
    "KINDS",
    "Setting",
    "SourceBuilder",
    "SourceCheck",
    "check_settings",
    "check_sources",
    "complete_with",
    "naming",
]

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
# what the tables of a run call the arguments of the classes below them
_NAMES = {
    "rule": "sampling",
    "sampling.jitter": "jitter",
    "clips": "join",
    "source": "kind",
    "max_frames": "frames",
    "limits.max_frames": "frames",
    "limits.image_size": "image_size",
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
# checks a table for a model and the limits of a phase, with its picture size
SourceCheck = Callable[[SourceConfig, TimeViperConfig, Limits], None]


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Name the source and its option in every ArgumentError of the classes it is made of."""
    try:
        yield
    except ArgumentError as error:
        if error.owner == "train" or error.owner.startswith("source "):
            raise
        argument = _NAMES.get(error.argument, error.argument)
        rule = error.rule.replace("rule=", "sampling=")
        owner = f"source {source!r}"
        raise ArgumentError(owner, argument, rule, error.value, error.remedy, error.part) from error


def _from_rows(table: SourceConfig, setting: Setting) -> Source:
    options = _checked(table)
    if setting.model.tokenizer is None:
        fail("train", "model", "have a tokenizer", None)
    rows, index = Rows(options["file"], options.get("media")), _index(setting.folder)
    faults = check_rows(rows, table.kind, index)
    if faults and setting.on_error == "raise":
        rule = "have no faulty rows (timeviper-fast train --check lists them), or on_error='skip'"
        raise ArgumentError(f"source {table.name!r}", "file", rule, f"{len(faults)}: {faults[0]}")
    return _over(
        table,
        rows,
        setting.model.config,
        TextCounter(setting.model.tokenizer, setting.model.config.template),
        index=index,
        features=_cache(options.get("features"), setting),
        leave_out=[fault.row for fault in faults if fault.row is not None],
    )


def _over(
    table: SourceConfig,
    rows: Rows,
    shape: TimeViperConfig,
    count_text: Callable[..., int],
    **more: Any,
) -> Source:
    """The source of a table over its rows; `more` are arguments of `ConversationSource`."""
    options = table.options
    sampling = Sampling(
        options.get("sampling", "fps:1"), options.get("jitter", False), shape.clip_frames
    )
    source = ConversationSource(
        table.name,
        rows,
        shape.vision,
        count_text,
        kind=table.kind,
        sampling=sampling,
        mention_duration=options.get("mention_duration", shape.mention_duration or None),
        template=shape.template,
        **more,
    )
    if "join" in options:
        return JoinedSource(source, tuple(options["join"]), table.name)
    return source


def _check_table(table: SourceConfig, shape: TimeViperConfig, limits: Limits) -> None:
    options = _checked(table)
    rows = Rows(options["file"], options.get("media"))
    _over(table, rows, shape, lambda *_: 0).limits(limits)


KINDS: dict[str, SourceBuilder] = dict.fromkeys(ROW_KINDS, _from_rows)
CHECKS: dict[str, SourceCheck] = dict.fromkeys(ROW_KINDS, _check_table)


def check_settings(
    config: TrainingConfig,
    kinds: Mapping[str, SourceBuilder] = KINDS,
    checks: Mapping[str, SourceCheck] = CHECKS,
) -> None:
    """Check the model's name and every source's table. No weights and no media are read.

    Raises:
        ValueError: there is no such model or kind, or an option breaks its rule.
    """
    tables = {table.name: table for table in config.sources}
    for name, table in tables.items():
        if table.kind not in kinds:
            fail(f"source {name!r}", "kind", f"be one of {', '.join(kinds)}", table.kind)
    shape = first_config(config.model)
    size = shape.vision.image_size
    held = config.evaluation.sources if config.evaluation else {}
    for phase in config.phases:
        size = phase.image_size or size
        for name in {**phase.sources, **held}:
            check = checks.get(tables[name].kind)
            if check is not None:
                with naming(name):
                    check(tables[name], shape, Limits(*phase.frames, size))


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
    return FeatureCache(Path(folder), vision_fingerprint(setting.model))


def check_sources(config: TrainingConfig) -> Iterator[tuple[SourceConfig, list[Fault]]]:
    """Every source that reads an annotation file, with the faults of its rows."""
    for table in config.sources:
        if table.kind in KINDS:
            options = _checked(table)
            rows = Rows(options["file"], options.get("media"))
            faults = check_rows(rows, table.kind, _index(Path(config.output)))
            if not len(rows) and not faults:
                faults = [Fault(str(rows.path), "it has no rows")]
            yield table, faults


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
