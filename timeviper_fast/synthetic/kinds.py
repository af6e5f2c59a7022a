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

from timeviper_fast.dataset.conversation import TextCounter
from timeviper_fast.dataset.features import vision_key
from timeviper_fast.dataset.sample import Limits
from timeviper_fast.errors import fail
from timeviper_fast.synthetic.pool import FramePool, PoolSize
from timeviper_fast.synthetic.questions import DEFAULT_TASKS
from timeviper_fast.synthetic.source import SyntheticSource
from timeviper_fast.synthetic.world import World
from timeviper_fast.training.config import SourceConfig
from timeviper_fast.training.kinds import Setting

__all__ = ["OPTIONS", "synthetic_source"]

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
# The pools of this process. Phases of a run share a pool if they have the same encoder.
_POOLS: dict[tuple[str, int, str, PoolSize], FramePool] = {}


def synthetic_source(table: SourceConfig, setting: Setting) -> SyntheticSource:
    """The source of a table, for `train(config, {**KINDS, "synthetic": synthetic_source})`."""
    unknown = sorted(table.options.keys() - OPTIONS.keys())
    if unknown:
        rule = f"be one of {', '.join(OPTIONS)}"
        fail(f"source {table.name!r}", unknown[0], rule, table.options[unknown[0]])
    options = {**OPTIONS, **table.options}
    model = setting.model
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


def _pool(world: World, setting: Setting, size: PoolSize) -> FramePool:
    key = (vision_key(setting.model), world.seed, world.name, size)
    if key not in _POOLS:
        model = setting.model
        _POOLS[key] = FramePool.encode(world, model.vision, model.projector, size)
    return _POOLS[key]
