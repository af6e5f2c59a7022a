"""Which group each token of a layer's input belongs to, and which frame and second it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper_fast.errors import ArgumentError, fail, is_integer
from timeviper_fast.layout import Segment

__all__ = ["ANSWER", "INSTRUCTION", "VISION", "Groups"]

INSTRUCTION, VISION, ANSWER = "instruction", "vision", "answer"


@dataclass(frozen=True)
class Groups:
    """The groups of a layer's n input tokens, each in one group. All tensors are on the CPU.

    Attributes:
        names: of the groups: instruction (all text of the prompt), vision, answer, the caller's.
        number: (n,) int64, each token's group as its place in `names`.
        position: (n,) int64, each token's place in the prompt and answer before any stage.
        vision: (n,) int64, each token's number among the video's vision tokens; -1 for text.
    """

    names: tuple[str, ...]
    number: Tensor
    position: Tensor
    vision: Tensor

    @classmethod
    def of(
        cls,
        segment: Segment,
        answer: int = 0,
        further: Mapping[str, Sequence[int] | Tensor] | None = None,
    ) -> Groups:
        """Groups of a prompt and `answer` tokens behind it, before any stage.

        Args:
            segment: the prompt; with `index` where text lies between its vision tokens.
            answer: tokens of the answer.
            further: more groups, each a name and the positions of its tokens in prompt and answer,
                such as the labels of frames. They leave the group that they were in.

        Raises:
            ValueError: a count below 0, a name twice, positions that do not exist or that two
                further groups claim, or a segment that only counts its vision tokens.
        """
        if not (is_integer(answer) and answer >= 0):
            fail("Groups", "answer", "be an integer of 0 or more", answer)
        if segment.text_inside and segment.index is None:
            fail("Groups", "segment", "say where its vision tokens lie (Segment.of_runs)", segment)
        total = segment.length + answer
        number = torch.zeros(total, dtype=torch.int64)
        vision = torch.full((total,), -1)
        tokens = torch.arange(segment.vision_present)
        if segment.index is not None:
            places = segment.index[0].cpu() + segment.span.start
        else:
            places = tokens + segment.span.start
        vision[places], number[places] = tokens, 1
        number[segment.length :] = 2
        names = [INSTRUCTION, VISION, ANSWER]
        for name, given in (further or {}).items():
            at = torch.as_tensor(given, dtype=torch.int64).cpu()
            if name in names:
                fail("Groups", "further", f"have names other than {', '.join(names)}", name)
            if at.numel() and not 0 <= int(at.min()) <= int(at.max()) < total:
                got = f"{int(at.min())} .. {int(at.max())} of {name}"
                raise ArgumentError("Groups", "further", f"lie in 0 .. {total - 1}", got)
            if (number[at] > 2).any():
                fail("Groups", "further", "claim each token once", name)
            number[at] = len(names)
            names.append(name)
        return cls(tuple(names), number, torch.arange(total), vision)

    def __len__(self) -> int:
        return len(self.number)

    def keep(self, kept: Tensor) -> Groups:
        """The groups behind a stage.

        Args:
            kept: (m,) int64, the tokens that it keeps, as numbers among the vision tokens in front
                of it (`StageRecord.kept` of one sample).

        Raises:
            ValueError: a number of no vision token.
        """
        here = (self.vision >= 0).nonzero()[:, 0]
        kept = kept.cpu()
        if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < len(here):
            got = f"{int(kept.min())} .. {int(kept.max())}"
            raise ArgumentError("Groups", "kept", f"lie in 0 .. {len(here) - 1}", got)
        stays = self.vision < 0
        stays[here[kept]] = True
        return Groups(self.names, self.number[stays], self.position[stays], self.vision[stays])

    def count(self, name: str) -> int:
        """Tokens of a group."""
        return int((self.number == self.place(name)).sum())

    def place(self, name: str) -> int:
        """The place of a group in `names`.

        Raises:
            ValueError: there is no such group.
        """
        if name not in self.names:
            fail("Groups", "name", f"be one of {', '.join(self.names)}", name)
        return self.names.index(name)

    def indicator(self, sinks: int = 0) -> Tensor:
        """(n, groups) float32: 1 where a token belongs to a group, else 0. With `sinks` there is
        one more column: 1 for the first `sinks` tokens, which also stay in their groups."""
        columns = F.one_hot(self.number, len(self.names)).float()
        if sinks:
            first = (torch.arange(len(self)) < sinks).float()
            columns = torch.cat([columns, first[:, None]], dim=1)
        return columns

    def rows(self, positions: Tensor) -> Tensor:
        """(r,) int64, ascending: the tokens of this layer's input that stood at `positions` before
        any stage; those that a stage dropped are left out."""
        return torch.isin(self.position, positions.cpu()).nonzero()[:, 0]

    def seconds(self, token_seconds: Tensor) -> Tensor:
        """(n,) float64, the second of each token; NaN for text.

        Args:
            token_seconds: (vision tokens of the video,), as `Footage.token_seconds` has them.
        """
        return _looked_up(self.vision, token_seconds.double().cpu(), float("nan"))

    def frames(self, counts: Sequence[int]) -> Tensor:
        """(n,) int64, the frame of each token; -1 for text.

        Args:
            counts: vision tokens of each frame.
        """
        tokens = torch.arange(len(counts)).repeat_interleave(
            torch.tensor(counts, dtype=torch.int64)
        )
        return _looked_up(self.vision, tokens, -1)


def _looked_up(vision: Tensor, table: Tensor, text: float) -> Tensor:
    if vision.numel() and int(vision.max()) >= len(table):
        rule = f"have an entry for each of the {int(vision.max()) + 1} vision tokens"
        raise ArgumentError("Groups", "the table of vision tokens", rule, len(table))
    padded = torch.cat([table, table.new_full((1,), text)])
    return padded[vision]
