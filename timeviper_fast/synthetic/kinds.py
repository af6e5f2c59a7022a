"""The synthetic world as a kind of [[source]] in a training run.

    [[source]]
    name = "study"
    kind = "synthetic"
    level = "study"             # or "hard"
    seed = 1                    # seed of the world's frames
    tasks = ["sign", "colour"]
    plain = 12000               # number of plain frames, and frames of each sign, shape and link
    signs = 8
    shapes = 40
    links = 8

If the vision encoder does not learn, frames are encoded once into a pool (`pool.py`). Otherwise
samples have pixels.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from timeviper_fast.config import TimeViperConfig
from timeviper_fast.dataset.conversation import TextCounter
from timeviper_fast.dataset.sample import Limits
from timeviper_fast.errors import BOOL, COUNT, INTEGER, SIZE, Kind, fail, is_number
from timeviper_fast.model.fingerprint import vision_fingerprint
from timeviper_fast.synthetic.levels import LEVELS
from timeviper_fast.synthetic.pen import SIDE
from timeviper_fast.synthetic.pool import FramePool, PoolSize
from timeviper_fast.synthetic.questions import DEFAULT_TASKS, TASKS
from timeviper_fast.synthetic.source import SyntheticSource
from timeviper_fast.synthetic.world import World
from timeviper_fast.training.config import SourceConfig
from timeviper_fast.training.kinds import Setting

__all__ = ["OPTIONS", "check_synthetic", "synthetic_source"]

# the options of a source, with their defaults
OPTIONS: dict[str, Any] = {
    "level": "study",
    "seed": 1,
    "tasks": list(DEFAULT_TASKS),
    "turns": 1,
    "absent": 0.1,
    "held_out": False,
    **asdict(PoolSize()),
}
_RULES = {
    "level": Kind(f"be one of {', '.join(LEVELS)}", lambda v: isinstance(v, str) and v in LEVELS),
    "seed": INTEGER,
    "tasks": Kind(
        f"be a list of some of {', '.join(TASKS)}",
        lambda v: isinstance(v, (list, tuple)) and bool(v) and all(task in TASKS for task in v),
    ),
    "turns": SIZE,
    "absent": Kind("lie in [0, 1]", lambda v: is_number(v) and 0 <= v <= 1),
    "held_out": BOOL,
    "plain": SIZE,
    **dict.fromkeys(("signs", "shapes", "links"), COUNT),
}
# The pools of this process. Phases of a run share a pool if they have the same encoder.
_POOLS: dict[tuple[str, int, str, PoolSize], FramePool] = {}


def synthetic_source(table: SourceConfig, setting: Setting) -> SyntheticSource:
    """The source of a table, for `train(config, {**KINDS, "synthetic": synthetic_source})`."""
    model = setting.model
    options = _checked(table, model.config.vision.image_size)
    if model.tokenizer is None:
        fail("train", "model", "have a tokenizer", None)
    world = World(options["seed"], options["level"])
    size = PoolSize(**{field.name: options[field.name] for field in fields(PoolSize)})
    return SyntheticSource(
        world if setting.learns_vision else _pool(world, setting, size),
        TextCounter(model.tokenizer, model.config.template),
        tasks=options["tasks"],
        turns=options["turns"],
        absent=options["absent"],
        held_out=options["held_out"],
        limits=Limits(1, size.plain),
        name=table.name,
    )


def check_synthetic(table: SourceConfig, shape: TimeViperConfig, limits: Limits) -> None:
    """Check the table of a source before the run begins, for `train(..., checks=...)`.

    Raises:
        ValueError: an option is unknown or breaks its rule, or the picture size is not 48.
    """
    _checked(table, limits.image_size or shape.vision.image_size)


def _checked(table: SourceConfig, image_size: int) -> dict[str, Any]:
    """All options of a table, with defaults."""
    owner = f"source {table.name!r}"
    unknown = sorted(table.options.keys() - OPTIONS.keys())
    if unknown:
        fail(owner, unknown[0], f"be one of {', '.join(OPTIONS)}", table.options[unknown[0]])
    for name, value in table.options.items():
        if not _RULES[name].holds(value):
            fail(owner, name, _RULES[name].rule, value)
    if image_size != SIDE:
        fail(owner, "image_size", f"be {SIDE}, in the model or the phase", image_size)
    return {**OPTIONS, **table.options}


def _pool(world: World, setting: Setting, size: PoolSize) -> FramePool:
    key = (vision_fingerprint(setting.model), world.seed, world.name, size)
    if key not in _POOLS:
        model = setting.model
        _POOLS[key] = FramePool.encode(world, model.vision, model.projector, size)
    return _POOLS[key]
