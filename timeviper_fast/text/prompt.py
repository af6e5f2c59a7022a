"""A question, or a conversation, to token ids around one run of vision tokens.

In the prompt's text `<image>` stands for the run. The text is cut there and its pieces are
tokenised one by one, so no placeholder is embedded. A tokenizer that has `<image>` and the role
markers as special tokens splits there too, so the ids are those of the whole text.

What users and assistants say is words, whatever it looks like: `<image>`, `<video>`, role markers
and the tokenizer's other special tokens are cut behind their first character and so become ordinary
tokens. Nobody ends a turn, or moves the vision tokens, by writing about such a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from timeviper_fast.errors import ArgumentError, fail
from timeviper_fast.layout import VisualSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ChatTemplate",
    "Message",
    "Prompt",
    "build_prompt",
    "chat_template",
    "check_answered",
    "render_chat",
    "stop_token_ids",
    "training_prompt",
    "video_sentence",
]

PLACEHOLDER = "<image>"
IGNORE_INDEX = -100  # torch's cross entropy skips these labels

# tokens of vision in the vocabularies of trained models, whether marked as special or not
_VISION_TOKENS = ("<image>", "<video>")
_ROLES = ("user", "assistant")

Message = Mapping[str, str]  # {"role": "user" or "assistant", "content": text}


@dataclass(frozen=True)
class ChatTemplate:
    """A conversation's format: the system text, then each turn between its two markers."""

    system: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    stop_tokens: tuple[str, ...]


_TEMPLATES = {
    "nano_base": ChatTemplate(
        system="<SPECIAL_10>System\n<SPECIAL_12>\n",
        user=("<SPECIAL_11>User\n", "\n<SPECIAL_12>"),
        assistant=("<SPECIAL_11>Assistant\n", "\n<SPECIAL_12>"),
        stop_tokens=("<SPECIAL_12>", "</s>"),
    ),
    "qwen2": ChatTemplate(
        system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>",
        user=("\n<|im_start|>user\n", "<|im_end|>"),
        assistant=("\n<|im_start|>assistant\n", "<|im_end|>"),
        stop_tokens=("<|im_end|>",),
    ),
}


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt with a gap where the vision tokens go.

    Attributes:
        before: text ids in front of the vision tokens; empty for a prompt without vision.
        after: text ids behind them.
        text: the tokenised text, in which one `<image>` stands for all vision tokens.
        supervised: for each id of before + after, whether training learns it; all False in a
            question.
    """

    before: list[int]
    after: list[int]
    text: str
    supervised: list[bool]

    def span(self, vision_tokens: int) -> VisualSpan:
        """Where `vision_tokens` tokens lie in the sequence."""
        return VisualSpan(len(self.before), vision_tokens)

    def length(self, vision_tokens: int) -> int:
        """Tokens of the whole sequence."""
        return len(self.before) + vision_tokens + len(self.after)

    def labels(self, vision_tokens: int) -> list[int]:
        """Training labels of the whole sequence, not shifted; -100 where nothing is learnt."""
        ids = self.before + self.after
        labels = [i if learnt else IGNORE_INDEX for i, learnt in zip(ids, self.supervised)]
        cut = len(self.before)
        return labels[:cut] + [IGNORE_INDEX] * vision_tokens + labels[cut:]


def chat_template(name: str) -> ChatTemplate:
    """The template of that name: nano_base (Nemotron-Nano base models) or qwen2.

    Raises:
        ValueError: no such template.
    """
    if name not in _TEMPLATES:
        known = ", ".join(map(repr, _TEMPLATES))
        fail("prompt", "template", f"be one of {known}", name)
    return _TEMPLATES[name]


def video_sentence(seconds: float, frames: int) -> str:
    """The sentence that tells the model how its frames were sampled, for questions about times."""
    return (
        f"The video lasts for {round(seconds, 2)} seconds, "
        f"and {frames} frames are uniformly sampled from it. "
    )


def build_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str | Sequence[Message],
    *,
    template: str = "nano_base",
    vision: bool = True,
    preface: str = "",
    answer_prefix: str = "",
    placeholder: str | None = None,
) -> Prompt:
    """The prompt that asks for an answer: [system][vision][preface][question][answer header].

    Args:
        tokenizer: any Hugging Face tokenizer.
        question: text, or messages {"role", "content"} that take turns and end with the user's.
            All of it is words: a `<video>` or the name of a special token in it is text.
        template: nano_base or qwen2.
        vision: whether vision tokens are part of the prompt.
        preface: text directly behind the vision tokens, such as `video_sentence(...)`.
        answer_prefix: words that the answer is forced to begin with; tokenised on their own.
        placeholder: a mark, such as "<image>", that moves the vision tokens to its place in the
            messages (repeated directly behind itself, it is one place). None, or no such mark in
            the text: they go in front of the first question.

    Raises:
        ValueError: blank question, text that is no UTF-8, roles out of order, two places for the
            vision tokens, a place for them without vision, or an unknown template.

    Source: upstream TimeViper's conversation templates.
    """
    messages = conversation(question, answer_prefix)
    turns, chat = _place_vision(messages, vision, preface, placeholder), chat_template(template)
    special = _special_tokens(tokenizer, chat)
    draft = _render(turns, chat, special)
    # tokenise the text in one piece: a tokenizer without the role markers may merge across them
    prompt = _encode(tokenizer, draft, [(0, len(draft.text), False)])
    forced = _Draft(special)
    forced.say(answer_prefix)
    prefix = _encode(tokenizer, forced, [(0, len(answer_prefix), False)])
    return Prompt(
        before=prompt.before,
        after=prompt.after + prefix.after,
        text=prompt.text + answer_prefix,
        supervised=prompt.supervised + prefix.supervised,
    )


def conversation(question: str | Sequence[Message], answer_prefix: str = "") -> Sequence[Message]:
    """Check a question and return it as messages.

    Raises:
        ValueError: as `build_prompt` for these arguments.
    """
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    _check_turns(messages)
    _expect_unicode("answer_prefix", answer_prefix)
    if messages[-1]["role"] == "assistant" and messages[-1]["content"]:
        raise ArgumentError(
            "prompt",
            "messages",
            "end with the user's turn",
            "an answered assistant turn",
            "pass the words an answer begins with as answer_prefix",
        )
    return messages


def check_answered(messages: Sequence[Message]) -> None:
    """Check an answered conversation, as training learns from.

    Raises:
        ValueError: no messages, roles out of order, a blank question, or no answer at the end.
    """
    _check_turns(messages)
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        raise ArgumentError("prompt", "messages", "end with an answer", "none to learn from")


def training_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    template: str = "nano_base",
    vision: bool = True,
    preface: str = "",
    placeholder: str | None = None,
    learn_header: bool = True,
) -> Prompt:
    """An answered conversation with its training mask: assistant turns are supervised, with their
    closing marker.

    The other arguments and the errors are those of `build_prompt`; the messages end with the
    assistant's turn.

    Args:
        learn_header: whether the role header of these turns is supervised, too, as upstream does.
            The query of attention stages is the token before the last supervised ones begin: with
            the header that is the last user turn's last token, without it the prompt's last token,
            which is also the query at inference.
    """
    check_answered(messages)
    turns, chat = _place_vision(messages, vision, preface, placeholder), chat_template(template)
    draft = _render(turns, chat, _special_tokens(tokenizer, chat))
    pieces = draft.pieces if learn_header else _headers_apart(draft.pieces, chat)
    return _encode(tokenizer, draft, pieces)


def render_chat(messages: Sequence[Message], template: str = "nano_base") -> str:
    """The conversation as text, without vision tokens. If the last turn is the user's (or an
    assistant's without content), the text ends with the header of the next answer."""
    _check_turns(messages)
    turns = _place_vision(messages, False, "", None)
    return _render(turns, chat_template(template), None).text


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, template: str = "nano_base"
) -> tuple[int, ...]:
    """Ids that end an answer: the tokenizer's end of text and the template's end of turn.

    Tokens that the tokenizer does not have are left out.
    """
    ids = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    for token in chat_template(template).stop_tokens:
        found = tokenizer.convert_tokens_to_ids(token)
        # an unknown token gets the id of <unk>
        if found is not None and tokenizer.convert_ids_to_tokens(found) == token:
            ids.add(found)
    return tuple(sorted(ids))


def _check_turns(messages: Sequence[Message]) -> None:
    if not isinstance(messages, (list, tuple)):
        _refuse_question(type(messages).__name__)
    if not messages:
        raise ArgumentError("prompt", "question", "not be empty or blank", "no messages")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            _refuse_question(f"{type(message).__name__} as turn {i}")
        role, content = message.get("role"), message.get("content")
        if role != _ROLES[i % 2]:
            rule = "take turns, user first, then assistant"
            raise ArgumentError("prompt", "messages", rule, f"{role!r} as turn {i}")
        if not isinstance(content, str):
            kind = type(content).__name__
            raise ArgumentError("prompt", "content", "be a string", f"{kind} in turn {i}")
        _expect_unicode("question" if role == "user" else "answer", content)
        if role == "user" and not content.strip():
            fail("prompt", "question", "not be empty or blank", content)
        if role == "assistant" and not content and i < len(messages) - 1:
            raise ArgumentError(
                "prompt", "answer", "not be empty before the last turn", f"turn {i}"
            )


def _expect_unicode(name: str, text: Any) -> None:
    """Refuse lone surrogates: Python makes them of command-line bytes that are not UTF-8."""
    if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
        fail("prompt", name, "be valid UTF-8 text", text)


def _refuse_question(value: str) -> NoReturn:
    rule = "be text, or a list of messages {role, content}"
    raise ArgumentError("prompt", "question", rule, value)


def _place_vision(
    messages: Sequence[Message], vision: bool, preface: str, placeholder: str | None
) -> list[_Turn]:
    """The messages as turns, one of them with a place for the vision tokens."""
    if placeholder is not None and not (isinstance(placeholder, str) and placeholder):
        fail("prompt", "placeholder", "be a string or None", placeholder)
    turns = [_Turn(message["role"], [message["content"]]) for message in messages]
    if placeholder:
        # marks one after the other count as one place, whatever the number of frames
        run = re.compile(f"(?:{re.escape(placeholder)})+")
        turns = [_Turn(turn.role, run.split(turn.texts[0])) for turn in turns]
    places = sum(len(turn.texts) - 1 for turn in turns)
    if (places or preface) and not vision:
        what = "a preface" if preface else "a placeholder for vision tokens"
        raise ArgumentError("prompt", "question", "be plain text without vision", what)
    if places > 1:
        rule = f"have one place (one run of {placeholder}; they form one contiguous span)"
        raise ArgumentError("prompt", "vision tokens", rule, f"{places} places")
    for i, turn in enumerate(turns):
        if turn.role == "user" and not "".join(turn.texts).strip():
            fail("prompt", "question", "not be empty or blank", messages[i]["content"])
    if vision and not places:
        turns[0].texts.insert(0, "")
    for turn in turns:
        if len(turn.texts) > 1:
            turn.texts[1] = preface + turn.texts[1]
    return turns


class _Turn(NamedTuple):
    """One message; between its texts, if there are two, the vision tokens go."""

    role: str
    texts: list[str]


class _Draft:
    """A prompt's text as it is written, and where to cut it for the tokenizer.

    Attributes:
        text: so far.
        cuts: where words would be taken for a special token.
        vision: where the placeholder of the vision tokens begins; -1 without.
        pieces: (start, stop, learnt in training) of each turn.
    """

    def __init__(self, special: re.Pattern[str] | None) -> None:
        self.text, self.vision = "", -1
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


def _special_tokens(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> re.Pattern[str]:
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


def _render(
    turns: Sequence[_Turn], template: ChatTemplate, special: re.Pattern[str] | None
) -> _Draft:
    """The conversation in the words of the template."""
    draft = _Draft(special)
    draft.text = template.system
    draft.end_piece(False)
    for turn in turns:
        learnt = turn.role == "assistant"
        head, tail = template.assistant if learnt else template.user
        empty = turn.texts == [""]
        if not empty:
            draft.text += head
            draft.say(turn.texts[0])
            for text in turn.texts[1:]:
                draft.vision = len(draft.text)
                draft.text += PLACEHOLDER
                draft.say(text)
            draft.text += tail
            draft.end_piece(learnt)
    if not learnt or empty:
        draft.text += template.assistant[0]
        draft.end_piece(False)
    return draft


def _headers_apart(
    pieces: Sequence[tuple[int, int, bool]], template: ChatTemplate
) -> list[tuple[int, int, bool]]:
    """The pieces with the header of each learnt one split off, not learnt."""
    apart = []
    for start, stop, learnt in pieces:
        begins = start + len(template.assistant[0]) if learnt else start
        apart += [(start, begins, False)] * learnt + [(begins, stop, learnt)]
    return apart


def _encode(
    tokenizer: PreTrainedTokenizerBase, draft: _Draft, pieces: Sequence[tuple[int, int, bool]]
) -> Prompt:
    """Tokenise the pieces one by one, each cut where the draft says."""
    ids: list[int] = []
    supervised: list[bool] = []
    before = 0
    gap = {draft.vision, draft.vision + len(PLACEHOLDER)} if draft.vision >= 0 else set()
    for start, stop, learnt in pieces:
        inner = {cut for cut in (*draft.cuts, *gap) if start < cut < stop}
        for begin, end in pairwise(sorted({start, stop} | inner)):
            if begin == draft.vision:
                before = len(ids)
                continue
            new = tokenizer.encode(draft.text[begin:end], add_special_tokens=False)
            ids += new
            supervised += [learnt] * len(new)
    return Prompt(ids[:before], ids[before:], draft.text, supervised)
