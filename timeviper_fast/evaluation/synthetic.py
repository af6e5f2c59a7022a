"""Needles in the seeded world: each video has its own scene, places and distractors."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import count, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timeviper_fast.dataset.randomness import hash63
from timeviper_fast.errors import fail
from timeviper_fast.evaluation.alike import find_alike, thumbnails
from timeviper_fast.evaluation.trial import Probe, Trial, frame_at
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.synthetic.glyphs import DIGITS, LETTERS
from timeviper_fast.synthetic.levels import LEVELS
from timeviper_fast.synthetic.needle import Needle
from timeviper_fast.synthetic.pen import SIDE
from timeviper_fast.synthetic.pool import FramePool, PoolSize
from timeviper_fast.synthetic.questions import TASKS, Puzzle, Question, draw_puzzle
from timeviper_fast.synthetic.shapes import SHAPES
from timeviper_fast.synthetic.wordings import HELD_OUT_WORDINGS, WORDINGS
from timeviper_fast.synthetic.world import World

__all__ = [
    "ABSENT_TASKS",
    "FEWEST",
    "NEEDLE_TASKS",
    "SyntheticHaystack",
    "draw_scene",
    "expect_pictures",
    "expect_world",
]

ABSENT_TASKS = ("no-sign", "no-colour", "no-chain", "no-count")
NEEDLE_TASKS = (*TASKS, *ABSENT_TASKS)
# A scene has four subjects for questions that are not chains: three shapes and the sign.
_SUBJECTS = {task: {"order": 2}.get(task, 1) for task in NEEDLE_TASKS if "chain" not in task}
_SHAPE_TASKS = {"colour", "count", "no-colour", "no-count"}
FEWEST = 32  # frames, so that every needle finds a place
Progress = Callable[[str, int, int], None]


class SyntheticHaystack:
    """Videos whose frames are drawn from a pool, no frame twice in a video.

    Args:
        model: projects the pool's features; its vision encoder made them.
        pool: encoded frames of a world that training has not seen.
        tasks: some of NEEDLE_TASKS, each asked once per video.
        facts: a description of the pool, kept with the run's settings.
        foot: a sentence about it, shown below figures.
        held_out: ask with the wordings that training never sees.
    """

    def __init__(
        self,
        model: TimeViperNetwork,
        pool: FramePool,
        tasks: Sequence[str],
        *,
        facts: Mapping[str, Any] | None = None,
        foot: str = "",
        held_out: bool = False,
    ) -> None:
        _expect_tasks(tasks)
        self.tasks, self.foot, self._held_out = tuple(tasks), foot, held_out
        self.facts = {**(facts or {}), "tasks": list(tasks), "held_out": held_out}
        self._model, self._pool = model, pool

    @classmethod
    def render(
        cls,
        model: TimeViperNetwork,
        tasks: Sequence[str],
        *,
        seed: int,
        level: str = "study",
        size: PoolSize | None = None,
        held_out: bool = False,
        progress: Progress | None = None,
    ) -> SyntheticHaystack:
        """Render and encode a pool, and compare all of its plain frames with each other.

        Args:
            model: with a vision encoder for pictures of 48 pixels.
            tasks, held_out: see the class.
            seed: seed of the world; it must differ from training's.
            level: "study" or "hard".
            size: how many frames the pool has.
            progress: called with ("frames", done, all).
        """
        expect_world(tasks, level)
        expect_pictures(model)
        size = size or PoolSize()
        thumbs: list[Tensor] = []

        def note(frames: np.ndarray, total: int) -> None:
            thumbs.append(thumbnails(torch.from_numpy(frames).permute(0, 3, 1, 2)))
            if progress is not None:
                progress("frames", sum(map(len, thumbs)), total)

        world = World(hash63("needle", seed), level)
        pool = FramePool.encode(
            world, model.vision, model.projector, size, model.dtype, on_frames=note
        )
        alike = find_alike(torch.cat(thumbs)[: size.plain])
        facts = {"world": level, "seed": seed, "pool": asdict(size), "alike": alike.to_dict()}
        foot = f"{level} world, seed {seed}; pool of {alike}"
        return cls(model, pool, tasks, facts=facts, foot=foot, held_out=held_out)

    def trial(self, frames: int, seed: int, number: int, depths: Sequence[float]) -> Trial:
        """See `Haystack.trial`."""
        own = hash63("needle", seed, frames, number)
        puzzle = draw_scene(own, frames, dict(zip(self.tasks, depths)), held_out=self._held_out)
        asked = {question.task: question for question in puzzle.questions}
        probes = tuple(_probe(asked[task], depth) for task, depth in zip(self.tasks, depths))
        return Trial(frames, own, puzzle.needles, probes)

    @torch.no_grad()
    def visual(self, trial: Trial, blind: bool = False) -> Tensor:
        """See `Haystack.visual`."""
        hidden = trial.needed if blind else ()
        shown = {frame: needle for frame, needle in trial.needles.items() if frame not in hidden}
        features = self._pool.draw(trial.frames, shown, trial.seed)
        return self._model.projector.project(features.to(self._model.device, self._model.dtype))


def expect_world(tasks: Sequence[str], level: str) -> None:
    """Raise an ArgumentError for unknown tasks or an unknown level, without a model."""
    _expect_tasks(tasks)
    if level not in LEVELS:
        fail("needle", "level", f"be one of {', '.join(LEVELS)}", level)


def expect_pictures(model: TimeViperNetwork) -> None:
    """Raise an ArgumentError for a model that does not see pictures of the world's size."""
    side = model.config.vision.image_size
    if side != SIDE:
        remedy = "needle with video files takes any model"
        rule = f"see pictures of {SIDE} pixels, as the world draws"
        fail("needle", "model", rule, side, remedy)


def _expect_tasks(tasks: Sequence[str]) -> None:
    if not tasks or not set(tasks) <= set(NEEDLE_TASKS) or len(set(tasks)) < len(tasks):
        fail("needle", "tasks", f"be different ones of {', '.join(NEEDLE_TASKS)}", list(tasks))
    subjects = sum(_SUBJECTS.get(task, 0) for task in tasks)
    if subjects > 4 or len(_SHAPE_TASKS.intersection(tasks)) > 3 or {"sign", "no-sign"} <= {*tasks}:
        rule = "ask about no more than a scene has (a sign and three shapes; order takes two)"
        fail("needle", "tasks", rule, list(tasks))


def _probe(question: Question, depth: float) -> Probe:
    return Probe(
        question.task, question.text, question.answer, question.needed, depth, question.hops
    )


def draw_scene(
    seed: int, frames: int, depths: Mapping[str, float], *, held_out: bool = False
) -> Puzzle:
    """A scene with one question per task, each with its needle at the task's depth.

    For a chain, the depth is that of its first card; the other cards stand anywhere. A second chain
    of the same length, which ends in another digit, serves as a distractor. Tasks that begin with
    "no-" ask about what is not in the scene; their depth has no meaning.

    Args:
        seed: any integer from 0.
        frames: length of the video, 32 or more.
        depths: one for each task's needle.
        held_out: ask with the wordings that training never sees.
    """
    if frames < FEWEST:
        fail("needle", "frames", f"be at least {FEWEST}", frames)
    shown = {task: depth for task, depth in depths.items() if task not in ABSENT_TASKS}
    for attempt in count():
        draw = hash63(seed, attempt)
        # without a task that needs a needle, the scene of a chain has needles that distract
        tasks = list(shown) or ["chain"]
        puzzle = draw_puzzle(draw, frames, tasks, turns=len(tasks), absent=0, held_out=held_out)
        asked = {question.task: question for question in puzzle.questions if question.needed}
        if not len(asked) == len(tasks) == len(puzzle.questions):
            continue
        needles = dict(puzzle.needles)
        if "chain" in shown and not _distract(needles, asked["chain"], frames, draw):
            continue
        targets = {asked[task]: frame_at(depth, frames) for task, depth in shown.items()}
        scene = Puzzle(frames, needles, puzzle.questions if shown else ())
        absent = [task.removeprefix("no-") for task in depths if task in ABSENT_TASKS]
        if whole := _with_absent(_moved(scene, targets), absent, draw, held_out):
            return whole
    raise AssertionError("unreachable")


def _with_absent(puzzle: Puzzle, tasks: Sequence[str], seed: int, held_out: bool) -> Puzzle | None:
    """Add questions about absent things; None if the scene asks about all that there is.

    Needles of these kinds that belong to no question are taken out.
    """
    chance, needles = random.Random(hash63(seed, "absent")), dict(puzzle.needles)
    used = {needles[i].kind for question in puzzle.questions for i in question.needed}
    questions = list(puzzle.questions)
    for task in tasks:
        if task == "chain":
            firsts = {needle.text[0] for needle in needles.values() if needle.kind == "link"}
            free = [letter for letter in LETTERS if letter not in firsts]
        else:
            free = [kind for kind in (["sign"] if task == "sign" else SHAPES) if kind not in used]
        if not free:
            return None
        subject = chance.choice(free)
        used.add(subject)
        needles = {frame: needle for frame, needle in needles.items() if needle.kind != subject}
        answer = {"sign": "none", "count": f"{subject} 0"}.get(task, f"{subject} none")
        text = chance.choice((HELD_OUT_WORDINGS if held_out else WORDINGS)[task])
        text = text.format(subject=subject, letter=subject)
        questions.append(Question(f"no-{task}", text, answer, ()))
    return Puzzle(puzzle.frames, needles, tuple(questions))


def _distract(needles: dict[int, Needle], chain: Question, frames: int, seed: int) -> bool:
    """Add a chain that no question is about; False if too few letters are left for its links."""
    chance = random.Random(hash63(seed, "distractor"))
    taken = {needle.text[0] for needle in needles.values() if needle.kind == "link"}
    letters = [letter for letter in LETTERS if letter not in taken]
    free = [frame for frame in range(frames) if frame not in needles]
    if min(len(letters), len(free)) < chain.hops:
        return False
    way = chance.sample(letters, chain.hops)
    way.append(chance.choice(DIGITS.replace(chain.answer[-1], "")))
    for frame, (first, second) in zip(chance.sample(free, chain.hops), pairwise(way)):
        needles[frame] = Needle("link", first + second)
    return True


def _moved(puzzle: Puzzle, targets: Mapping[Question, int]) -> Puzzle:
    """The scene with each question's needle at its target; the two frames' contents are swapped."""
    place = {frame: frame for frame in {*puzzle.needles, *targets.values()}}
    for question, target in targets.items():
        first = _first(puzzle, question)
        there = next(frame for frame, now in place.items() if now == target)
        place[first], place[there] = target, place[first]
    needles = {place[frame]: needle for frame, needle in puzzle.needles.items()}
    questions = tuple(
        _answered(replace(q, needed=tuple(sorted(place[i] for i in q.needed))), needles, puzzle)
        for q in puzzle.questions
    )
    return Puzzle(puzzle.frames, needles, questions)


def _answered(question: Question, needles: Mapping[int, Needle], puzzle: Puzzle) -> Question:
    """The question with the answer that the new places give."""
    words = question.answer.split()
    if question.task == "when":
        tenth = 10 * question.needed[0] // puzzle.frames
        return replace(question, answer=f"{words[0]} {10 * tenth}%")
    if question.task == "order":
        first = needles[question.needed[0]].kind == words[0]
        return replace(question, answer=f"{words[0]} {words[1]} {'yes' if first else 'no'}")
    return question


def _first(puzzle: Puzzle, question: Question) -> int:
    """The frame to read first; for a chain, the card that begins with the letter asked for."""
    if question.task != "chain":
        return question.needed[0]
    return next(i for i in question.needed if puzzle.needles[i].text[0] == question.answer[0])
