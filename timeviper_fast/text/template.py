"""How a conversation is written as text: the chat templates, and where the text is cut.

In the text `<image>` stands for a run of vision tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from timeviper_fast.errors import fail

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "PLACEHOLDER",
    "TEMPLATES",
    "ChatTemplate",
    "Draft",
    "Turn",
    "chat_template",
    "headers_apart",
    "render",
    "special_tokens",
]

PLACEHOLDER = "<image>"
# tokens of vision in the vocabularies of trained models, whether marked as special or not
_VISION_TOKENS = ("<image>", "<video>")


@dataclass(frozen=True)
class ChatTemplate:
    """A conversation's format: the system text, then each turn between its two markers.

    Attributes:
        system: the text at the beginning.
        user, assistant: what stands before and behind a turn.
        stop_tokens: tokens that end an answer.
        behind_vision: text between the vision tokens and the question.
        seconds: format of the seconds in the sentence about the video's length; "" writes them
            with up to two decimals.
        open_answers: whether an empty answer in the middle of a conversation is written as a header
            without an end, as VideoChat-Flash does; otherwise it is refused.
    """

    system: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    stop_tokens: tuple[str, ...]
    behind_vision: str = ""
    seconds: str = ""
    open_answers: bool = False


_QWEN2 = ChatTemplate(
    system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>",
    user=("\n<|im_start|>user\n", "<|im_end|>"),
    assistant=("\n<|im_start|>assistant\n", "<|im_end|>"),
    stop_tokens=("<|im_end|>",),
)
TEMPLATES = {
    "nano_base": ChatTemplate(
        system="<SPECIAL_10>System\n<SPECIAL_12>\n",
        user=("<SPECIAL_11>User\n", "\n<SPECIAL_12>"),
        assistant=("<SPECIAL_11>Assistant\n", "\n<SPECIAL_12>"),
        stop_tokens=("<SPECIAL_12>", "</s>"),
    ),
    "qwen2": _QWEN2,
    # VideoChat-Flash's: the end of a turn includes the newline
    "qwen_2": ChatTemplate(
        system=_QWEN2.system + "\n",
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
        stop_tokens=_QWEN2.stop_tokens,
        behind_vision="\n",
        seconds=".2f",
        open_answers=True,
    ),
}


def chat_template(name: str) -> ChatTemplate:
    """The template of that name: nano_base (Nemotron-Nano base models), qwen2 (TimeViper with
    Qwen2.5) or qwen_2 (VideoChat-Flash).

    Raises:
        ValueError: no such template.
    """
    if name not in TEMPLATES:
        known = ", ".join(map(repr, TEMPLATES))
        fail("prompt", "template", f"be one of {known}", name)
    return TEMPLATES[name]


class Turn(NamedTuple):
    """One message; between each two of its texts a run of vision tokens goes."""

    role: str
    texts: list[str]


class Draft:
    """A prompt's text as it is written, and where to cut it for the tokenizer.

    Attributes:
        text: so far.
        cuts: where words would be taken for a special token.
        places: where the placeholders of the vision tokens begin.
        pieces: (start, stop, learnt in training) of each turn.
    """

    def __init__(self, special: re.Pattern[str] | None) -> None:
        self.text = ""
        self.places: list[int] = []
        self.cuts: list[int] = []
        self.pieces: list[tuple[int, int, bool]] = []
        self._special = special

    def say(self, words: str) -> None:
        """Add words, in which no token is special."""
        found = self._special.finditer(words) if self._special else ()
        self.cuts += [len(self.text) + match.start() + 1 for match in found]
        self.text += words

    def end_piece(self, learnt: bool) -> None:
        start = self.pieces[-1][1] if self.pieces else 0
        self.pieces.append((start, len(self.text), learnt))


def special_tokens(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> re.Pattern[str]:
    """Finds where words begin that the tokenizer would take for special tokens.

    Added tokens that are not marked as special are vocabulary, such as runs of spaces, unless the
    template uses them as markers.
    """
    text = template.system + "".join(template.user + template.assistant)
    markers = {*re.findall(r"<\S+?>", text), *template.stop_tokens}
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    special = {token for token, marked in added.items() if token and (marked or token in markers)}
    words = sorted(special | set(_VISION_TOKENS))
    # matches may overlap, so look ahead only
    return re.compile(f"(?={'|'.join(map(re.escape, words))})")


def render(turns: Sequence[Turn], template: ChatTemplate, special: re.Pattern[str] | None) -> Draft:
    """The conversation in the words of the template."""
    draft = Draft(special)
    draft.text = template.system
    draft.end_piece(False)
    for i, turn in enumerate(turns):
        learnt = turn.role == "assistant"
        head, tail = template.assistant if learnt else template.user
        empty = turn.texts == [""]
        if not empty:
            draft.text += head
            draft.say(turn.texts[0])
            for text in turn.texts[1:]:
                draft.places.append(len(draft.text))
                draft.text += PLACEHOLDER
                draft.say(text)
            draft.text += tail
            draft.end_piece(learnt)
        elif i < len(turns) - 1:
            draft.text += head
            draft.end_piece(False)
    if not learnt or empty:
        draft.text += template.assistant[0]
        draft.end_piece(False)
    return draft


def headers_apart(
    pieces: Sequence[tuple[int, int, bool]], template: ChatTemplate
) -> list[tuple[int, int, bool]]:
    """The pieces with the header of each learnt one split off, not learnt."""
    apart = []
    for start, stop, learnt in pieces:
        begins = start + len(template.assistant[0]) if learnt else start
        apart += [(start, begins, False)] * learnt + [(begins, stop, learnt)]
    return apart
