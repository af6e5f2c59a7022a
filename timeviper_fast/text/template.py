"""How a conversation is written as text: the chat templates, and where the text is cut.

In the text `<image>` stands for a run of vision tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from timeviper_fast.errors import fail
from timeviper_fast.text.labels import FrameLabels

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
        begins: whether the tokenizer's beginning of text, if it has one, stands in front.
        around_system: what stands before and behind a system message, which then replaces `system`;
            None: there is no system message.
        think: what an answer's header ends with to answer at once, and to think first. `/think` and
            `/no_think` in what the system or the user says are then switches, and left out. None:
            the model has no such switch.
        labels: how the frames of a video are labelled; None: vision tokens are one run.
    """

    system: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    stop_tokens: tuple[str, ...]
    behind_vision: str = ""
    seconds: str = ""
    open_answers: bool = False
    begins: bool = False
    around_system: tuple[str, str] | None = None
    think: tuple[str, str] | None = None
    labels: FrameLabels | None = None

    def around_vision(self, video: bool) -> tuple[str, str]:
        """Text directly in front of and behind the place of the vision tokens. The labels of a
        video and their opening marks are part of that place."""
        if self.labels is None:
            return "", ""
        front = self.labels.lead if video else self.labels.opens
        return front, self.labels.closes + self.labels.tail

    def answer_header(self, think: bool = False) -> str:
        """The header of the answer that the model goes on from."""
        return self.assistant[0] + (self.think[think] if self.think else "")


_QWEN2 = ChatTemplate(
    system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>",
    user=("\n<|im_start|>user\n", "<|im_end|>"),
    assistant=("\n<|im_start|>assistant\n", "<|im_end|>"),
    stop_tokens=("<|im_end|>",),
)
_NEMOTRON_VL = ChatTemplate(
    system="<SPECIAL_10>System\n\n",
    user=("<SPECIAL_11>User\n", "\n"),
    assistant=("<SPECIAL_11>Assistant\n", "\n<SPECIAL_12>\n"),
    stop_tokens=("<SPECIAL_12>",),
    begins=True,
    around_system=("<SPECIAL_10>System\n", "\n"),
    think=("<think></think>", "<think>\n"),
    # as in training
    labels=FrameLabels(lead="This is a video:\n", tail="\n"),
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
    "nemotron_vl": _NEMOTRON_VL,
    # no sentence in front of the video
    "nemotron_vl_joined": replace(_NEMOTRON_VL, labels=FrameLabels(), behind_vision="\n"),
    # nothing between frames either
    "nemotron_vl_run_on": replace(
        _NEMOTRON_VL, labels=FrameLabels(separator=""), behind_vision="\n"
    ),
    "nemotron_omni": replace(
        _NEMOTRON_VL,
        system="<|im_start|>system\n<|im_end|>\n",
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
        stop_tokens=("<|im_end|>", "</s>"),
        begins=False,
        around_system=("<|im_start|>system\n", "<|im_end|>\n"),
        labels=FrameLabels(),
        behind_vision="\n",
    ),
}


def chat_template(name: str) -> ChatTemplate:
    """The template of that name.

    nano_base is that of Nemotron-Nano base models, qwen2 of TimeViper with Qwen2.5, qwen_2 of
    VideoChat-Flash, nemotron_vl of Nemotron-Nano-12B-v2-VL, nemotron_omni of Nemotron-3-Nano-Omni.
    nemotron_vl writes a video as in training, nemotron_vl_joined as transformers and vLLM do, and
    nemotron_vl_run_on as SGLang does.

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
    texts = (template.system, *template.user, *template.assistant, *(template.think or ()))
    marks = () if template.labels is None else (template.labels.opens, template.labels.closes)
    markers = {*re.findall(r"<\S+?>", "".join(texts)), *template.stop_tokens, *marks}
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    special = {token for token, marked in added.items() if token and (marked or token in markers)}
    words = sorted(special | set(_VISION_TOKENS))
    # matches may overlap, so look ahead only
    return re.compile(f"(?={'|'.join(map(re.escape, words))})")


def render(
    turns: Sequence[Turn],
    template: ChatTemplate,
    special: re.Pattern[str] | None,
    *,
    begin: str = "",
    system: str | None = None,
    video: bool = False,
    think: bool = False,
) -> Draft:
    """The conversation in the words of the template.

    Args:
        turns: of users and assistants.
        template: the chat template.
        special: where words are cut.
        begin: the tokenizer's beginning of text.
        system: the system message; None: the template's own text.
        video: whether the vision tokens are a video, of which the template may label the frames.
        think: whether the model thinks before it answers.
    """
    draft = Draft(special)
    draft.text = begin
    _say_system(draft, template, system)
    draft.end_piece(False)
    front, behind = template.around_vision(video)
    for i, turn in enumerate(turns):
        learnt = turn.role == "assistant"
        head, tail = template.assistant if learnt else template.user
        empty = turn.texts == [""]
        if not empty:
            draft.text += head
            draft.say(turn.texts[0])
            for text in turn.texts[1:]:
                draft.text += front
                draft.places.append(len(draft.text))
                draft.text += PLACEHOLDER + behind
                draft.say(text)
            draft.text += tail
            draft.end_piece(learnt)
        elif i < len(turns) - 1:
            draft.text += head
            draft.end_piece(False)
    if not learnt or empty:
        draft.text += template.answer_header(think)
        draft.end_piece(False)
    return draft


def _say_system(draft: Draft, template: ChatTemplate, system: str | None) -> None:
    if system is None or template.around_system is None:
        draft.text += template.system
        return
    head, tail = template.around_system
    draft.text += head
    draft.say(system)
    draft.text += tail


def headers_apart(
    pieces: Sequence[tuple[int, int, bool]], template: ChatTemplate
) -> list[tuple[int, int, bool]]:
    """The pieces with the header of each learnt one split off, not learnt."""
    apart = []
    for start, stop, learnt in pieces:
        begins = start + len(template.assistant[0]) if learnt else start
        apart += [(start, begins, False)] * learnt + [(begins, stop, learnt)]
    return apart
