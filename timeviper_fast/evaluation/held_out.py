"""What a model of the synthetic world has learnt, and what it has only seen.

The drawn set has frames, wordings and lengths that training has; the other sets change one of them,
and the last changes all. Needles, places and questions are drawn anew in each set. Sets of the same
lengths ask about the same scenes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timeviper_fast.dataset.randomness import hash63
from timeviper_fast.errors import COUNT, FROM_0, expect, expect_folder, fail, is_integer
from timeviper_fast.evaluation.needle import NeedlePlan, run_needles, settings_of
from timeviper_fast.evaluation.rows import Row, expect_settings, write_json
from timeviper_fast.evaluation.score import Score
from timeviper_fast.evaluation.synthetic import (
    FEWEST,
    SyntheticHaystack,
    expect_pictures,
    expect_world,
)
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stages import parse_stages
from timeviper_fast.synthetic.pool import FramePool, PoolSize
from timeviper_fast.synthetic.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SETS", "HeldOutPlan", "compare", "run_held_out"]

# {set: what differs from training}
SETS = {
    "drawn": (),
    "wordings": ("wordings",),
    "seeds": ("seeds",),
    "sizes": ("sizes",),
    "all": ("wordings", "seeds", "sizes"),
}
_Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HeldOutPlan:
    """The sets of a comparison.

    Attributes:
        trained_seed: seed of the frames that training drew (of `train-tiny`: its seed + 1 at level
            "study", + 2 at level "hard").
        seed: seed of frames that training has not seen, and of all scenes.
        level: level of the world.
        frames: lengths of videos that training has.
        other_frames: lengths that it has not.
        videos: videos of each length; each asks every task once.
        tasks: some of `NEEDLE_TASKS`.
        points: largest difference from the drawn set, in percent points, that counts as equal.
        pool: numbers of frames of each pool; training's, or its frames would be others.
        stages: compression stages in place of the model's own, as `ask` takes them in words.

    Raises:
        ValueError: a set that cannot be asked or is not held out.
    """

    trained_seed: int = 1
    seed: int = 1_000_003
    level: str = "study"
    frames: tuple[int, ...] = (128, 512, 1024)
    other_frames: tuple[int, ...] = (90, 1500, 3000)
    videos: int = 110
    tasks: tuple[str, ...] = ("sign", "colour", "chain", "count")
    points: float = 3.0
    pool: PoolSize = field(default_factory=PoolSize)
    stages: str | None = None

    def __post_init__(self) -> None:
        expect("held_out", self, COUNT, "trained_seed", "seed")
        expect("held_out", self, FROM_0, "points")
        expect_world(self.tasks, self.level)
        for name in ("frames", "other_frames"):
            lengths = getattr(self, name)
            if not lengths or not all(is_integer(n) and n >= FEWEST for n in lengths):
                fail("held_out", name, f"be integers of {FEWEST} or more", list(lengths))
        NeedlePlan(self.frames, videos=self.videos, seed=self.seed).expect_tasks(len(self.tasks))
        if self.trained_seed == self.seed:
            fail("held_out", "seed", "differ from the seed of training", self.seed)
        if shared := set(self.frames) & set(self.other_frames):
            rule = "be lengths that are not among `frames`"
            fail("held_out", "other_frames", rule, sorted(shared))
        longest = max(self.frames + self.other_frames)
        if self.pool.plain < longest:
            rule = f"have the longest video's {longest:,} frames"
            fail("held_out", "pool", rule, self.pool.plain)


def run_held_out(
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase,
    plan: HeldOutPlan,
    out: Path,
    *,
    progress: _Progress | None = None,
) -> dict[str, Any]:
    """Ask all questions of all sets, or continue; return and write the comparison.

    Args:
        model, tokenizer: the model, with a vision encoder for pictures of 48 pixels.
        plan: the sets.
        out: a folder. It gets one folder of rows for each set, and `held_out.json`.
        progress: called with ("answers", done, all) for each set.

    Raises:
        ValueError: the model sees pictures of another size, or `out` is a file or holds rows of
            other settings.
    """
    expect_pictures(model)
    expect_folder("held_out", "out", out)
    facts = {**asdict(plan), "videos": None, "points": None}
    if plan.stages is None:
        # folders of runs with the model's own stages do not tell them
        del facts["stages"]
    else:
        model = model.with_stages(parse_stages(plan.stages, model.config))
    # compare the settings before the pools are rendered
    for name, changes in SETS.items():
        own = facts | {"set": name, "held_out": "wordings" in changes}
        needles = NeedlePlan(plan.frames, videos=plan.videos, seed=plan.seed)
        expect_settings(out / name / "settings.json", settings_of(model, needles) | own)
    pools = {
        other: FramePool.encode(
            World(hash63("held out", plan.seed) if other else plan.trained_seed, plan.level),
            model.vision,
            model.projector,
            plan.pool,
        )
        for other in (False, True)
    }
    rows = {}
    for name, changes in SETS.items():
        haystack = SyntheticHaystack(
            model,
            pools["seeds" in changes],
            plan.tasks,
            facts={**facts, "set": name},
            held_out="wordings" in changes,
        )
        lengths = plan.other_frames if "sizes" in changes else plan.frames
        needles = NeedlePlan(lengths, videos=plan.videos, seed=plan.seed)
        rows[name] = run_needles(model, tokenizer, haystack, needles, out / name, progress=progress)
    found = {**asdict(plan), "sets": compare(rows, plan.points)}
    write_json(out / "held_out.json", found)
    return found


def compare(rows: Mapping[str, Sequence[Row]], points: float) -> list[dict[str, Any]]:
    """For each set and task, and for all tasks together: accuracy, and the difference from "drawn".

    Args:
        rows: the answers of each set; "drawn" is one of them.
        points: see `HeldOutPlan`.

    Returns:
        Dicts with set, task, right, n, share and its 95 % interval, difference in percent points,
        its 95 % interval (Newcombe's), and whether the difference is at least -points: a set that
        is answered better than the drawn one is no loss.
    """
    found = []
    for name, own in rows.items():
        for task in (*dict.fromkeys(row.task for row in own), "all"):
            score, drawn = (
                sum((row.answered for row in some if task in (row.task, "all")), Score(0, 0))
                for some in (own, rows["drawn"])
            )
            low, high = _difference(score, drawn)
            change = 100 * (score.share - drawn.share)
            found.append(
                {
                    "set": name,
                    "task": task,
                    **{"right": score.right, "n": score.n, "share": score.share},
                    "interval": score.interval,
                    "difference": change,
                    "difference_interval": (low, high),
                    "holds": change >= -points,
                }
            )
    return found


def _difference(one: Score, other: Score) -> tuple[float, float]:
    """Newcombe's 95 % interval of the difference of two shares, in percent points."""
    difference = one.share - other.share
    (low, high), (other_low, other_high) = one.interval, other.interval
    below = math.hypot(one.share - low, other_high - other.share)
    above = math.hypot(high - one.share, other.share - other_low)
    return 100 * (difference - below), 100 * (difference + above)
