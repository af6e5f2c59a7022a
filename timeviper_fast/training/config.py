"""A training run as frozen dataclasses, read from TOML.

    model = "models/timeviper-9b"  # a directory, a hub id, "timeviper-fast/tiny" or "preset:NAME"
    output = "runs/alignment"

    [[source]]
    name = "captions"
    file = "captions.jsonl"

    [[phase]]
    name = "alignment"
    steps = 2000
    learn = ["projector"]
    sources = { captions = 1.0 }

Fields that a table leaves out have the defaults below. Docs: docs/training.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import COUNT, ArgumentError, Kind, expect, fail, is_integer, is_number
from timeviper_fast.training.optimizer import PARTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["EvaluationConfig", "PhaseConfig", "SourceConfig", "TrainingConfig", "read_config"]

T = TypeVar("T")

# what the file calls fields that are tables
_TABLES = {"sources": "[[source]]", "phases": "[[phase]]"}

_TEXT = Kind("be a string that is not blank", lambda v: isinstance(v, str) and v.strip() != "")
_TEXT_OR_NONE = Kind("be a string", lambda v: v is None or isinstance(v, str))
_BOOL = Kind("be true or false", lambda v: isinstance(v, bool))
_SIZE = Kind("be an integer above 0", lambda v: is_integer(v) and v > 0)
_RATE = Kind("be a number above 0", lambda v: is_number(v) and v > 0)
_RATE_OR_NONE = Kind("be a number above 0", lambda v: v is None or (is_number(v) and v > 0))
_FROM_0 = Kind("be a number of 0 or more", lambda v: is_number(v) and v >= 0)
_SHARE = Kind("lie in [0, 1]", lambda v: is_number(v) and 0 <= v <= 1)
_FRAMES = Kind(
    "be two integers [least, most] above 0",
    lambda v: (
        isinstance(v, tuple)
        and len(v) == 2
        and all(is_integer(n) and n > 0 for n in v)
        and v[0] <= v[1]
    ),
)
_WEIGHTS = Kind(
    "give every source a weight above 0",
    lambda v: isinstance(v, dict) and bool(v) and all(is_number(w) and w > 0 for w in v.values()),
)


def _pair(value: object) -> bool:
    """Whether it is a tuple of two numbers."""
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))


@dataclass(frozen=True)
class SourceConfig:
    """Where samples come from.

    Attributes:
        name: its name in phases, errors and metrics.
        kind: "conversation", "caption", "detailed", "grounding" or "text" for annotation files, or
            a kind that the caller of `train` adds.
        options: the other fields of this kind, such as `file` and `media`.
    """

    name: str
    kind: str = "conversation"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect("source", self, _TEXT, "name", "kind")


@dataclass(frozen=True)
class PhaseConfig:
    """One part of a run, with its own optimizer and learning rate schedule.

    Attributes:
        name: the phase's name, and part of its folder's name.
        steps: number of optimizer steps.
        sources: {name of a source: weight}; samples are drawn in proportion to the weights.
        learn: the parts of the model that learn, some of vision, projector, llm and transv.
        frames: [least, most] frames of a video.
        image_size: pixels per side, if the phase changes the picture's size.
        keep: for each compression stage, the share of vision tokens that it keeps, or two shares
            [first step, last step], interpolated linearly. A share of 1 drops nothing, so the stage
            is off. None keeps the model's own shares.
        tokens_per_pack: most tokens of a pack, counted as the mean over the layers.
        packs_per_step: packs of an optimizer step, over all processes.
        learning_rate: peak learning rate of the parts without a rate of their own.
        vision_learning_rate, projector_learning_rate, transv_learning_rate: peak rates of these
            parts; None takes `learning_rate`.
        weight_decay, betas: AdamW's settings; only matrices decay.
        warmup: share of the steps over which the learning rate rises.
        floor: the last step's learning rate as a share of the peak.
        clip: largest norm of the gradient; 0 disables clipping.
        selection_loss: weight of the selection loss, for samples that name their needed frames;
            0 does not compute it.
    """

    name: str
    steps: int
    sources: dict[str, float]
    learn: tuple[str, ...] = ("projector", "llm", "transv")
    frames: tuple[int, int] = (1, 128)
    image_size: int | None = None
    keep: tuple[tuple[float, float], ...] | None = None
    tokens_per_pack: int = 8192
    packs_per_step: int = 1
    learning_rate: float = 1e-5
    vision_learning_rate: float | None = None
    projector_learning_rate: float | None = None
    transv_learning_rate: float | None = 5e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.03
    floor: float = 0.0
    clip: float = 1.0
    selection_loss: float = 0.0

    def __post_init__(self) -> None:
        owner = f"phase {self.name!r}"
        expect(owner, self, _TEXT, "name")
        expect(owner, self, _SIZE, "steps", "tokens_per_pack", "packs_per_step")
        expect(owner, self, _WEIGHTS, "sources")
        expect(owner, self, _FRAMES, "frames")
        expect(owner, self, _RATE, "learning_rate")
        rates = (f"{part}_learning_rate" for part in ("vision", "projector", "transv"))
        expect(owner, self, _RATE_OR_NONE, *rates)
        expect(owner, self, _FROM_0, "weight_decay", "clip", "selection_loss")
        expect(owner, self, _SHARE, "warmup", "floor")
        if Path(self.name).name != self.name or self.name.startswith("."):
            fail(owner, "name", "be usable as a folder's name", self.name)
        if not (isinstance(self.learn, tuple) and self.learn and {*self.learn} <= {*PARTS}):
            fail(owner, "learn", f"name some of {', '.join(PARTS)}", self.learn)
        if not _pair(self.betas) or not all(0 <= beta < 1 for beta in self.betas):
            fail(owner, "betas", "be two numbers in [0, 1)", self.betas)
        if self.image_size is not None and not _SIZE.holds(self.image_size):
            fail(owner, "image_size", _SIZE.rule, self.image_size)
        pairs = () if self.keep is None else self.keep
        if not isinstance(pairs, tuple) or not all(map(_pair, pairs)):
            fail(owner, "keep", "be a list of shares, or of pairs of them", self.keep)
        if not all(0 < share <= 1 for pair in pairs for share in pair):
            fail(owner, "keep", "hold shares in (0, 1], or pairs of them", self.keep)

    def learning_rates(self) -> dict[str, float]:
        """{part that learns: its peak learning rate}"""
        own = {part: getattr(self, f"{part}_learning_rate", None) for part in self.learn}
        return {part: own[part] or self.learning_rate for part in self.learn}

    def stages_at(
        self, step: int, stages: tuple[CompressionStage, ...]
    ) -> tuple[CompressionStage, ...]:
        """The model's `stages` with their keep values at step `step` (from 0).

        Raises:
            ValueError: `keep` has another number of stages.
        """
        if self.keep is None:
            return stages
        if len(self.keep) != len(stages):
            rule = f"give each of the model's {len(stages)} stages a share"
            fail(f"phase {self.name!r}", "keep", rule, self.keep)
        along = step / max(self.steps - 1, 1)
        shares = (first + (last - first) * along for first, last in self.keep)
        return tuple(replace(stage, keep=keep) for stage, keep in zip(stages, shares))


@dataclass(frozen=True)
class EvaluationConfig:
    """Loss and accuracy on samples that are not learnt, between the steps.

    Attributes:
        sources: {name of a source: weight}; the same samples each time.
        samples: number of samples.
        every: steps between two evaluations; each phase also ends with one.
    """

    sources: dict[str, float]
    samples: int = 64
    every: int = 500

    def __post_init__(self) -> None:
        expect("evaluation", self, _WEIGHTS, "sources")
        expect("evaluation", self, _SIZE, "samples", "every")


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run.

    Attributes:
        model: a directory, a hub id, or "preset:NAME" for seeded random weights.
        output: the run's folder, with the phases' models and snapshots and metrics.jsonl.
        sources, phases: the sources of samples, and the phases in their order.
        evaluation: measures on samples that are not learnt; None disables it.
        stages: compression stages in place of the model's own. Transfers that the model does not
            have get new weights and closed gates.
        tokenizer: a directory with tokenizer files, for a preset; None takes the byte tokenizer.
        seed: seed of new weights and of the order of samples.
        dtype: the weights' dtype during training: float32, bfloat16 or float64.
        autocast: "bfloat16", or None to compute in the weights' dtype.
        gradient_checkpointing: store only each layer's input and recompute the layer in the
            backward pass.
        workers: number of processes that decode videos.
        save_every: steps between two snapshots; the last `keep_snapshots` of a phase are kept.
        log_every: steps between two lines of metrics.
        on_error: for a sample that cannot be read, "raise", or "skip" it and count it.
        tensorboard: whether to write the metrics for TensorBoard, too.
        save_dtype: dtype of the last phase's model: float32, bfloat16, float16 or float64.
    """

    model: str
    output: str
    sources: tuple[SourceConfig, ...]
    phases: tuple[PhaseConfig, ...]
    evaluation: EvaluationConfig | None = None
    stages: tuple[CompressionStage, ...] | None = None
    tokenizer: str | None = None
    seed: int = 0
    dtype: str = "float32"
    autocast: str | None = None
    gradient_checkpointing: bool = False
    workers: int = 0
    save_every: int = 500
    keep_snapshots: int = 2
    log_every: int = 10
    on_error: str = "raise"
    tensorboard: bool = False
    save_dtype: str = "float32"

    def __post_init__(self) -> None:
        owner = "training"
        expect(owner, self, _TEXT, "model", "output")
        expect(owner, self, COUNT, "seed", "workers")
        expect(owner, self, _SIZE, "save_every", "keep_snapshots", "log_every")
        expect(owner, self, _BOOL, "gradient_checkpointing", "tensorboard")
        expect(owner, self, _TEXT_OR_NONE, "autocast", "tokenizer")
        _one_of(owner, "dtype", self.dtype, ("float32", "bfloat16", "float64"))
        _one_of(owner, "autocast", self.autocast, (None, "bfloat16"))
        _one_of(owner, "on_error", self.on_error, ("raise", "skip"))
        _one_of(owner, "save_dtype", self.save_dtype, ("float32", "bfloat16", "float16", "float64"))
        names = [source.name for source in self.sources]
        for kind, used in (("source", names), ("phase", [phase.name for phase in self.phases])):
            if not used:
                fail(owner, kind, "be there: one [[...]] table or more", "none")
            twice = sorted({name for name in used if used.count(name) > 1})
            if twice:
                fail(owner, kind, "have names that differ", twice)
        drawn = [(f"phase {phase.name!r}", phase.sources) for phase in self.phases]
        if self.evaluation is not None:
            drawn.append(("evaluation", self.evaluation.sources))
        for place, sources in drawn:
            unknown = sorted(set(sources) - set(names))
            if unknown:
                fail(place, "sources", f"name sources of the file ({', '.join(names)})", unknown)


def _one_of(owner: str, name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        fail(owner, name, f"be one of {', '.join(map(str, choices))}", value)


def read_config(path: str | Path) -> TrainingConfig:
    """A run's configuration from a TOML file.

    Raises:
        ValueError: the file does not exist or is not TOML, a table or field is unknown, or a value
            breaks its rule. The message names the table and the field.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(
            "", "config", "be a file that can be read", f"{path} ({error})"
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ArgumentError("", "config", "be TOML", f"{path} ({error})") from None
    return config_from_dict(values)


def config_from_dict(values: Mapping[str, Any]) -> TrainingConfig:
    """A run's configuration from the tables of its file; errors are those of `read_config`."""
    given = dict(values)
    given["sources"] = tuple(map(_source, _tables(given, "source")))
    given["phases"] = tuple(
        _build(PhaseConfig, f"phase {i + 1}", {**table, **_keep(table)})
        for i, table in enumerate(_tables(given, "phase"))
    )
    if "stage" in given:
        given["stages"] = tuple(
            _build(CompressionStage, f"stage {i + 1}", table)
            for i, table in enumerate(_tables(given, "stage"))
        )
    if "evaluation" in given:
        given["evaluation"] = _build(EvaluationConfig, "evaluation", given["evaluation"])
    return _build(TrainingConfig, "training", given)


def _tables(values: dict[str, Any], name: str) -> list[dict[str, Any]]:
    tables = values.pop(name, [])
    if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        fail("training", name, f"be tables [[{name}]]", tables)
    return tables


def _source(table: dict[str, Any]) -> SourceConfig:
    own = {name: table[name] for name in ("name", "kind") if name in table}
    rest = {name: value for name, value in table.items() if name not in own}
    return _build(SourceConfig, "source", {**own, "options": rest})


def _keep(table: dict[str, Any]) -> dict[str, Any]:
    """A phase's `keep` as pairs; a single share is used for the first and the last step."""
    shares = table.get("keep")
    if not isinstance(shares, list):
        return {}
    return {"keep": [share if isinstance(share, list) else [share, share] for share in shares]}


def _build(kind: type[T], owner: str, values: Any) -> T:
    if not isinstance(values, Mapping):
        fail("training", owner, "be a table", values)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(values.keys() - known)
    if unknown:
        fail(owner, unknown[0], f"be one of its fields ({', '.join(known)})", values[unknown[0]])
    needed = [f.name for f in known.values() if f.default is MISSING is f.default_factory]
    missing = [name for name in needed if name not in values]
    if missing:
        names = ", ".join(_TABLES.get(name, name) for name in missing)
        raise ArgumentError("training", owner, f"have {names}", ", ".join(values) or "nothing")
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
