"""The needle tests of V-NIAH and VideoChat-Flash, to compare with published figures.

Both differ from ours in what follows, and make a test easier:

- Needles are inserted into the haystack: a video of n frames becomes longer. Ours replaces frames.
- A needle lies behind int(depth * n) frames; at depth 1 it is next to the question.
- The answer is not generated. It is supplied, and right if each of its tokens has the largest logit
  given the tokens before it. That is the case exactly if greedy decoding begins with these tokens,
  which is what is computed here. What the model would say after them does not count. (One pass with
  the answer, as in training, would also add dropped vision tokens to the answer's tokens if a stage
  has an open transfer. Decoding does not.)
- All needles of a length share one haystack; of films it is their beginning. No other needle
  distracts, except in chains.

V-NIAH (LongVA, https://github.com/EvolvingLMMs-Lab/LongVA) asks about 300, 600, ... 3,000 frames at
six depths. VideoChat-Flash (https://github.com/OpenGVLab/VideoChat-Flash) asks about 1,000, 2,000,
... 10,000 frames at six depths, shows each needle four times in a row, and above 7,500 frames shows
one half of the haystack twice. In its multi-hop test the cards of a chain and of a wrong chain are
spread evenly, from the first frame to the last.

Differences that remain: theirs use photographs and films with multiple choice, and two questions
for each chain (the last picture's caption, and what it shows). Here are the world's own open
questions, one for each chain; needles that the user gives are asked as they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from timeviper_fast.errors import fail
from timeviper_fast.evaluation.trial import Haystack, Probe, Trial

__all__ = ["FORMS", "Form", "form_of"]

# tasks whose answer depends on several frames or on the place, apart from chains
_REFUSED = {"count", "order", "when"}


@dataclass(frozen=True)
class Form:
    """How another project hides needles.

    Attributes:
        name: the project's name for its test.
        frames: the lengths of its grid.
        depths: the number of its depths.
        copies: how often in a row a needle is shown.
        doubled: above so many frames, one half of the haystack is shown twice; None: never.
        chains: whether it has a test of several hops.
    """

    name: str
    frames: tuple[int, ...]
    depths: int = 6
    copies: int = 1
    doubled: int | None = None
    chains: bool = False

    def check(self, tasks: Sequence[str]) -> None:
        """Refuse tasks that the form does not have.

        Raises:
            ArgumentError: a task needs several frames, or the place of its needle.
        """
        refused = _REFUSED | (set() if self.chains else {"chain"})
        if found := [task for task in tasks if task in refused]:
            rule = f"need one frame each{' or be a chain' if self.chains else ''} in {self.name}"
            fail("needle", "tasks", rule, found[0])

    def video(
        self, haystack: Haystack, trial: Trial, probe: Probe, blind: bool = False
    ) -> tuple[Tensor, Probe]:
        """The visual tokens of one question, and the question with the frames that it needs now.

        Args:
            haystack: where the trial comes from.
            trial: a video of n frames with needles in it; they are taken out and inserted.
            probe: one of its questions.
            blind: leave the needles out.

        Returns:
            (n + copies for each needle, tokens, d_model), or n frames if blind; and the probe.
        """
        cards = _cards(trial, probe)
        needles = {frame: trial.needles[frame] for frame in cards}
        alone = Trial(trial.frames, 0, needles, (probe,))
        plain = haystack.visual(replace(alone, needles={}))
        if self.doubled is not None and trial.frames > self.doubled:
            half = plain[: (trial.frames + 1) // 2]
            plain = torch.cat([half, half])[: trial.frames]
        if blind:
            return plain, replace(probe, needed=())
        shown = haystack.visual(alone)[list(cards)]
        parts: list[Tensor] = []
        needed: list[int] = []
        start = 0
        for number, (card, place) in enumerate(zip(cards, _places(trial, probe, cards))):
            parts += [plain[start:place], shown[number].expand(self.copies, -1, -1)]
            start = place
            if card in probe.needed:
                first = place + number * self.copies
                needed += range(first, first + self.copies)
        return torch.cat([*parts, plain[start:]]), replace(probe, needed=tuple(needed))


def _cards(trial: Trial, probe: Probe) -> tuple[int, ...]:
    """Frames of the needles to insert: the needed one; for a chain also those that distract."""
    if not probe.hops:
        return probe.needed[:1]
    others = {i for other in trial.probes if other is not probe for i in other.needed}
    return tuple(sorted(set(trial.needles) - others))


def _places(trial: Trial, probe: Probe, cards: Sequence[int]) -> list[int]:
    """How many frames of the haystack lie in front of each card."""
    if not probe.hops:
        return [int(probe.depth * trial.frames + 1e-9)]
    gaps = max(len(cards) - 1, 1)
    return [number * trial.frames // gaps for number in range(len(cards))]


FORMS = {
    form.name: form
    for form in (
        Form("v-niah", tuple(range(300, 3001, 300))),
        Form("videochat-flash", tuple(range(1000, 10_001, 1000)), 6, 4, 7500, chains=True),
    )
}


def form_of(name: str) -> Form | None:
    """The form of a name; None for "ours".

    Raises:
        ArgumentError: there is no such form.
    """
    if name != "ours" and name not in FORMS:
        fail("needle", "form", f"be one of ours, {', '.join(FORMS)}", name)
    return FORMS.get(name)
