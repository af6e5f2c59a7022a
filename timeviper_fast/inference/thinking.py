"""The part of an answer in which the model thinks, apart from what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["END", "Thought"]

END = "</think>"


class Thought:
    """Follows the tokens of one answer to the end of its thinking.

    The mark may be one token of the tokenizer or several, and its last one may hold further text.

    Args:
        tokenizer: of the model.
        thinks: whether the answer begins with thinking.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, thinks: bool = True) -> None:
        self._tokenizer, self._over = tokenizer, not thinks
        self._thought: list[int] = []
        self._said: list[int] = []

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Thought:
        """Of a whole answer that begins with thinking."""
        thought = cls(tokenizer)
        for token in ids:
            thought.add(token)
        return thought

    def add(self, token: int) -> bool:
        """Take the next token; whether it belongs to what is said."""
        if self._over:
            self._said.append(token)
            return True
        self._thought.append(token)
        # no tokenizer writes the mark in more tokens than it has letters
        self._over = END in self._tokenizer.decode(self._thought[-len(END) :])
        return False

    @property
    def thinking(self) -> str:
        """What was thought, without the mark."""
        return self._parts[0].strip()

    @property
    def text(self) -> str:
        """What was said: "" while the model still thinks."""
        said = self._tokenizer.decode(self._said, skip_special_tokens=True)
        return f"{self._parts[1]}{said}".strip()

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence that says that the answer ended within the thinking; () if it did not."""
        if self._over:
            return ()
        return ("The answer ended while the model was thinking: allow it more new tokens.",)

    @property
    def _parts(self) -> tuple[str, str]:
        """What the tokens of the thinking hold in front of the mark, and behind it."""
        before, _, behind = str(self._tokenizer.decode(self._thought)).partition(END)
        return before, behind
