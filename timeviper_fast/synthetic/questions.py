"""Scenes of needles, and questions about them with their answers.

A scene maps frame numbers to needles; all other frames are plain. Every question has one true
answer, because a scene has at most one sign, links with different first letters, and one shape of
each kind unless that kind is counted. Answers begin with their subject ("star red", and "KMT4" for
the chain that starts at K), because a model learns the first token of a bare answer badly.

The task "when" asks for the tenth of the video, as "star 30%". The prompt holds no frame positions:
attention has no position embeddings, and only the decaying states of the Mamba-2 layers depend on
distance. So the task is off by default; `Answer.kept_seconds` gives the exact time.
"order" needs positions too and is off by default.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from timeviper_fast.errors import fail
from timeviper_fast.synthetic.glyphs import DIGITS, LETTERS
from timeviper_fast.synthetic.needle import COLOURS, Needle
from timeviper_fast.synthetic.shapes import SHAPES
from timeviper_fast.synthetic.wordings import HELD_OUT_WORDINGS, WORDINGS

__all__ = ["DEFAULT_TASKS", "TASKS", "Puzzle", "Question", "draw_puzzle"]

TASKS = tuple(WORDINGS)
DEFAULT_TASKS = ("sign", "colour", "chain", "count")
MOST_HOPS, MOST_COUNTED, MOST_DECOYS = 4, 4, 48


@dataclass(frozen=True)
class Question:
    """One question about a scene.

    Attributes:
        task: one of TASKS.
        text: the question's words.
        answer: the true answer.
        needed: frames that show the answer, ascending; () if its subject is absent.
        hops: links of a chain; 0 for other tasks.
    """

    task: str
    text: str
    answer: str
    needed: tuple[int, ...]
    hops: int = 0


@dataclass(frozen=True)
class Puzzle:
    """A scene and its questions: a video of `frames` frames, and {frame number: needle}."""

    frames: int
    needles: Mapping[int, Needle]
    questions: tuple[Question, ...]


def draw_puzzle(
    seed: int,
    frames: int,
    tasks: Sequence[str] = DEFAULT_TASKS,
    *,
    turns: int = 1,
    absent: float = 0.1,
    held_out: bool = False,
) -> Puzzle:
    """Draw a scene and `turns` questions about it; the arguments determine the result.

    Args:
        seed: any integer from 0.
        frames: length of the video.
        tasks: tasks of the questions, drawn with equal probability.
        turns: number of questions; no two have the same subject.
        absent: share of the sign, colour and chain questions whose subject is absent.
        held_out: ask with the wordings that training never sees.

    Raises:
        ValueError: there is no task, a task is unknown, or there are too few frames for all tasks.
    """
    if frames < 1 or turns < 1:
        fail("draw_puzzle", "frames and turns", "be at least 1", (frames, turns))
    if not tasks or not set(tasks) <= set(TASKS):
        fail("draw_puzzle", "tasks", f"be some of {', '.join(TASKS)}", tasks)
    draft = _Draft(random.Random(seed), frames, absent)
    for _ in range(turns):
        draft.ask(draft.chance.choice(tasks))
    if not draft.asked:
        fail("draw_puzzle", "frames", f"be enough for one of {', '.join(tasks)}", frames)
    draft.add_decoys()
    places = draft.chance.sample(range(frames), len(draft.needles))
    wordings = HELD_OUT_WORDINGS if held_out else WORDINGS
    questions = [asked.question(draft, places, wordings) for asked in draft.asked]
    return Puzzle(frames, dict(zip(places, draft.needles)), tuple(questions))


@dataclass(frozen=True)
class _Asked:
    """A question before its needles have frames; `shown` are their indices in the draft."""

    task: str
    words: Mapping[str, str]
    answer: str
    shown: tuple[int, ...]

    def question(
        self, draft: _Draft, places: Sequence[int], wordings: Mapping[str, Sequence[str]]
    ) -> Question:
        at, answer = [places[i] for i in self.shown], self.answer
        if self.task == "when":
            answer += f" {10 * at[0] // draft.frames * 10}%"
        elif self.task == "order":
            answer += " yes" if at[0] < at[1] else " no"
        text = draft.chance.choice(wordings[self.task]).format(**self.words)
        hops = len(at) if self.task == "chain" else 0
        return Question(self.task, text, answer, tuple(sorted(at)), hops)


class _Draft:
    """The needles and questions of a puzzle that is being drawn."""

    def __init__(self, chance: random.Random, frames: int, absent: float) -> None:
        self.chance, self.frames, self.absent = chance, frames, absent
        self.needles: list[Needle] = []
        self.asked: list[_Asked] = []
        # subjects without a question
        self.things = [*SHAPES, "sign"]
        self.letters = list(LETTERS)
        chance.shuffle(self.things)
        chance.shuffle(self.letters)

    @property
    def room(self) -> int:
        """Number of frames that are still plain."""
        return self.frames - len(self.needles)

    def ask(self, task: str) -> None:
        """Add a question of the task and its needles; add nothing if all its subjects are taken."""
        getattr(self, f"_ask_{task}")()

    def show(self, *needles: Needle) -> tuple[int, ...]:
        self.needles += needles
        return tuple(range(len(self.needles) - len(needles), len(self.needles)))

    def _note(self, task: str, answer: str, shown: tuple[int, ...], **words: str) -> None:
        self.asked.append(_Asked(task, words, answer, shown))

    def _take(self, names: Sequence[str]) -> str | None:
        """Take one of these subjects that has no question yet, or None."""
        name = next((thing for thing in self.things if thing in names), None)
        if name:
            self.things.remove(name)
        return name

    def _is_there(self) -> bool:
        return self.room > 0 and self.chance.random() >= self.absent

    def _picture(self, name: str) -> Needle:
        chance = self.chance
        if name == "sign":
            return Needle("sign", chance.choice(LETTERS) + chance.choice(DIGITS))
        return Needle(name, colour=chance.choice(list(COLOURS)))

    def _ask_sign(self) -> None:
        if self._take(["sign"]):
            if self._is_there():
                sign = self._picture("sign")
                self._note("sign", sign.text, self.show(sign))
            else:
                self._note("sign", "none", ())

    def _ask_colour(self) -> None:
        if shape := self._take(list(SHAPES)):
            if self._is_there():
                needle = self._picture(shape)
                answer, shown = f"{shape} {needle.colour}", self.show(needle)
            else:
                answer, shown = f"{shape} none", ()
            self._note("colour", answer, shown, subject=shape)

    def _ask_chain(self) -> None:
        if len(self.letters) <= MOST_HOPS:
            return
        if self._is_there():
            hops = self.chance.randint(1, min(MOST_HOPS, self.room))
            way = [self.letters.pop() for _ in range(hops)] + [self.chance.choice(DIGITS)]
            links = [Needle("link", first + second) for first, second in pairwise(way)]
            self._note("chain", "".join(way), self.show(*links), letter=way[0])
        else:
            letter = self.letters.pop()
            self._note("chain", f"{letter} none", (), letter=letter)

    def _ask_count(self) -> None:
        if shape := self._take(list(SHAPES)):
            count = min(self.chance.randint(0, MOST_COUNTED), self.room)
            shown = self.show(*(self._picture(shape) for _ in range(count)))
            self._note("count", f"{shape} {count}", shown, subject=shape)

    def _ask_when(self) -> None:
        if self.room and (thing := self._take([*SHAPES, "sign"])):
            self._note("when", thing, self.show(self._picture(thing)), subject=thing)

    def _ask_order(self) -> None:
        if self.room > 1 and len(self.things) > 1:
            first, second = self.things.pop(), self.things.pop()
            shown = self.show(self._picture(first), self._picture(second))
            self._note("order", f"{first} {second}", shown, subject=first, other=second)

    def add_decoys(self) -> None:
        """Add needles that belong to no question: usually few, sometimes many.

        Decoys repeat no sign or shape that has a question, and no first letter of a link that has
        one. A decoy link may lead into a chain.
        """
        chance = self.chance
        many = int(5 * (1 - chance.random()) ** -0.5) - 3
        links = list(self.letters)
        for _ in range(min(many, MOST_DECOYS, self.room)):
            kinds = [*self.things, *(["link"] * 3 if links else [])]
            if not kinds:
                return
            kind = chance.choice(kinds)
            if kind == "link":
                first = links.pop()
                ends = DIGITS if chance.random() < 0.4 else LETTERS.replace(first, "")
                self.show(Needle("link", first + chance.choice(ends)))
            else:
                self.things.remove(kind)
                self.show(self._picture(kind))
