"""A whole run: its phases one after the other, each continued from its last snapshot.

output/
    run.json                    the configuration that the run was started with
    metrics.jsonl
    1-alignment/
        step-00000500/          snapshots, removed when the phase is done
        model/                  the phase's model, written when it is done
    2-instruction/
        ...
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from timeviper_fast.checkpoint.save import save_pretrained
from timeviper_fast.config import TimeViperConfig
from timeviper_fast.dataset.sample import Limits, Source
from timeviper_fast.errors import ArgumentError
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.training.config import PhaseConfig, TrainingConfig
from timeviper_fast.training.evaluate import evaluate
from timeviper_fast.training.kinds import (
    CHECKS,
    KINDS,
    Setting,
    SourceBuilder,
    SourceCheck,
    check_settings,
    complete_with,
    naming,
)
from timeviper_fast.training.metrics import MetricsLog
from timeviper_fast.training.parallel import World, whole_weights
from timeviper_fast.training.phase import PhaseRun, Progress
from timeviper_fast.training.start import first_config, initial_model, with_stages
from timeviper_fast.training.stream import StepStream

__all__ = ["train"]

# fields that a continued run may change, because they do not affect the result
_FREE = {"workers", "save_every", "keep_snapshots", "log_every", "tensorboard"}


def train(
    config: TrainingConfig,
    kinds: Mapping[str, SourceBuilder] = KINDS,
    *,
    checks: Mapping[str, SourceCheck] = CHECKS,
    progress: Progress | None = None,
) -> Path:
    """Train a model, or continue where the run in `config.output` stopped.

    A continued run gives the same result as an uninterrupted one, bit for bit on one machine with
    the same number of processes and threads.

    Args:
        config: the run's configuration.
        kinds: {kind of source: function that makes it}; by default those of annotation files.
        checks: {kind of source: function that checks a table before the run begins}.
        progress: called in the first process with each line of metrics.

    Returns:
        The folder of the last phase's model, which `TimeViper.from_pretrained` loads.

    Raises:
        ValueError: the configuration, the model and the data do not fit together, `output` holds
            another run, or a loss or gradient is not finite.
    """
    world = World.join()
    output = Path(config.output)
    if world.first:
        if not _has_begun(output):
            check_settings(config, kinds, checks)
        _claim(config, output)
    world.wait()
    model_at: str | Path = config.model
    size = None
    for number, phase in enumerate(config.phases, 1):
        folder = output / f"{number}-{phase.name}"
        size = phase.image_size or size
        if not world.share((folder / "model").is_dir()):
            _run_phase(config, kinds, number, folder, model_at, size, world, progress)
        model_at = folder / "model"
    world.leave()
    return Path(model_at)


def _has_begun(output: Path) -> bool:
    """Whether the folder holds a snapshot or a model of a run."""
    noted = output / "run.json"
    if not noted.exists():
        return False
    phases = json.loads(noted.read_text(encoding="utf-8")).get("phases")
    if phases is None:
        return True
    return any((output / f"{i}-{phase['name']}").exists() for i, phase in enumerate(phases, 1))


def _claim(config: TrainingConfig, output: Path) -> None:
    """Write the run's configuration into its folder, or compare it with that of a run that began.

    A folder that holds only the index of the media files (from `--check`) counts as empty.

    Raises:
        ValueError: the folder belongs to another run, or holds other files.
    """
    values = json.loads(json.dumps(asdict(config)))
    noted = output / "run.json"
    if not _has_begun(output):
        held = {path.name for path in output.iterdir()} if output.is_dir() else set()
        is_foreign = not noted.exists() and bool(held - {"media"})
        if is_foreign or (output.exists() and not output.is_dir()):
            rule = "be new or empty, or the folder of a run that stopped"
            raise ArgumentError("train", "output", rule, output)
        output.mkdir(parents=True, exist_ok=True)
        # metrics of a run without a snapshot: nothing can continue them
        (output / "metrics.jsonl").unlink(missing_ok=True)
        noted.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        return
    before = json.loads(noted.read_text(encoding="utf-8"))
    other = sorted(n for n in values if n not in _FREE and before.get(n) != values[n])
    if other:
        rule = f"be those of the run in {output}, or a new output"
        changes = (
            line for name in other for line in _changes(name, before.get(name), values[name])
        )
        raise ArgumentError("train", ", ".join(other), rule, "; ".join(changes))


def _changes(name: str, before: Any, now: Any) -> Iterator[str]:
    """The values that differ, as "phases.tuning.steps = 4 (was 2)"."""
    if isinstance(before, list) and isinstance(now, list):
        tables = [
            {t["name"]: t for t in side if isinstance(t, dict) and "name" in t}
            for side in (before, now)
        ]
        if [len(before), len(now)] == list(map(len, tables)):
            before, now = tables
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            if before.get(key) != now.get(key):
                yield from _changes(f"{name}.{key}", before.get(key), now.get(key))
    else:
        yield f"{name} = {now!r} (was {before!r})" if before != now else f"{name} in another order"


def _run_phase(
    config: TrainingConfig,
    kinds: Mapping[str, SourceBuilder],
    number: int,
    folder: Path,
    model_at: str | Path,
    image_size: int | None,
    world: World,
    progress: Progress | None,
) -> None:
    phase = config.phases[number - 1]
    dtype = getattr(torch, config.dtype)
    model = initial_model(model_at, tokenizer=config.tokenizer, seed=config.seed, dtype=dtype)
    # a phase before this one may have kept more or fewer tokens
    stages = first_config(config.model).stages if config.stages is None else config.stages
    with_stages(model, stages, seed=config.seed)
    if image_size is not None:
        model.set_image_size(image_size)
    shape = model.config
    setting = Setting(model, Path(config.output), config.on_error, "vision" in phase.learn)
    sources = _sources(config, phase.sources, kinds, setting, phase)
    complete = complete_with(config, phase.sources, setting)
    stream = StepStream.of_phase(config, phase, number, sources, shape, world, complete)
    run = PhaseRun(config, phase, model, stream, folder, world)
    run.restore()
    log = None
    if world.first:
        log = MetricsLog(Path(config.output), tensorboard=config.tensorboard)
        log.forget_behind(phase.name, run.step)
    check = None
    if config.evaluation is not None:
        held = _sources(config, config.evaluation.sources, kinds, setting, phase)
        settings = config.evaluation

        def check(run: PhaseRun) -> dict[str, float]:
            return evaluate(run, held, settings, config.seed)

    run.run(log, check, progress if world.first else None)
    if log is not None:
        log.close()
    _finish(config, run, shape, folder, world)


def _sources(
    config: TrainingConfig,
    names: Mapping[str, float],
    kinds: Mapping[str, SourceBuilder],
    setting: Setting,
    phase: PhaseConfig,
) -> dict[str, Source]:
    """{name: source} of the sources with a weight, within the phase's limits."""
    limits = Limits(*phase.frames, phase.image_size)
    made = {}
    for source in config.sources:
        if source.name in names:
            with naming(source.name):
                made[source.name] = kinds[source.kind](source, setting).limits(limits)
    return made


def _finish(
    config: TrainingConfig, run: PhaseRun, shape: TimeViperConfig, folder: Path, world: World
) -> None:
    """Write the phase's model and remove its snapshots."""
    stages = run.phase.stages_at(run.phase.steps - 1, run.stages)
    weights = whole_weights(run.wrapper)
    if world.first:
        with torch.device("meta"):
            model = TimeViper(replace(shape, stages=stages))
        model.load_state_dict(weights, assign=True)
        last = run.phase is config.phases[-1]
        model.to(getattr(torch, config.save_dtype if last else config.dtype))
        save_pretrained(model, model.config, run.model.tokenizer, folder / "model")
        for snapshot in folder.glob("*step-*"):
            shutil.rmtree(snapshot)
    world.wait()
