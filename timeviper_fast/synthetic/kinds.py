"""The synthetic world as a kind of [[source]] in a training run.

    [[source]]
    name = "study"
    kind = "synthetic"
    level = "study"             # or "hard"
    seed = 1                    # seed of the world's frames
    tasks = ["sign", "colour"]

If the vision encoder does not learn, frames are encoded once into a pool (`pool.py`). Otherwise
samples have pixels.
"""

from __future__ import annotations

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

__all__ = ["synthetic_source"]

_OPTIONS = {
    "level": "study",
    "seed": 1,
    "tasks": list(DEFAULT_TASKS),
    "turns": 1,
    "absent": 0.1,
    "held_out": False,
    "plain": 12_000,
}
# The pools of this process. Phases of a run share a pool if they have the same encoder.
_POOLS: dict[tuple[str, int, str, int], FramePool] = {}


def synthetic_source(table: SourceConfig, setting: Setting) -> SyntheticSource:
    """The source of a table, for `train(config, {**KINDS, "synthetic": synthetic_source})`."""
    unknown = sorted(table.options.keys() - _OPTIONS.keys())
    if unknown:
        rule = f"be one of {', '.join(_OPTIONS)}"
        fail(f"source {table.name!r}", unknown[0], rule, table.options[unknown[0]])
    options = {**_OPTIONS, **table.options}
    model = setting.model
    if model.tokenizer is None:
        fail("train", "model", "have a tokenizer", None)
    world = World(options["seed"], options["level"])
    return SyntheticSource(
        world if setting.learns_vision else _pool(world, setting, options["plain"]),
        TextCounter(model.tokenizer, model.config.template),
        tasks=options["tasks"],
        turns=options["turns"],
        absent=options["absent"],
        held_out=options["held_out"],
        limits=Limits(1, options["plain"]),
        name=table.name,
    )


def _pool(world: World, setting: Setting, plain: int) -> FramePool:
    key = (vision_key(setting.model), world.seed, world.name, plain)
    if key not in _POOLS:
        model = setting.model
        _POOLS[key] = FramePool.encode(world, model.vision, model.projector, PoolSize(plain))
    return _POOLS[key]
