"""A question, or a conversation, to token ids around one run of vision tokens.

In the text one placeholder, `<image>`, stands for the run. The text is cut there and its pieces are
tokenised one by one, so no placeholder is embedded. A tokenizer that has `<image>` and the role
markers as special tokens splits there too, so the ids are those of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

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
    "render_chat",
    "stop_token_ids",
    "training_prompt",
    "video_sentence",
]

PLACEHOLDER = "<image>"
IGNORE_INDEX = -100  # torch's cross entropy skips these labels

# adjacent placeholders count as one place, whatever the number of frames
_RUN = re.compile(r"(?:<image>|<video>)+")
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
) -> Prompt:
    """The prompt that asks for an answer: [system][vision][preface][question][answer header].

    Args:
        tokenizer: any Hugging Face tokenizer.
        question: text, or messages {"role", "content"} that take turns and end with the user's.
            The vision tokens go in front of the first question; a `<video>` or `<image>` in the
            text moves them to its place instead.
        template: nano_base or qwen2.
        vision: whether vision tokens are part of the prompt.
        preface: text directly behind the vision tokens, such as `video_sentence(...)`.
        answer_prefix: words that the answer is forced to begin with; tokenised on their own.

    Raises:
        ValueError: blank question, text that is no UTF-8, roles out of order, two places for the
            vision tokens, a place for them without vision, or an unknown template.

    Source: upstream TimeViper's conversation templates.
    """
    messages = conversation(question, answer_prefix)
    pieces = _pieces(_place_vision(messages, vision, preface), chat_template(template))
    # tokenise the text in one piece: a tokenizer without the role markers may merge across them
    prompt = _encode(tokenizer, [("".join(text for text, _ in pieces), False)])
    forced = tokenizer.encode(answer_prefix, add_special_tokens=False) if answer_prefix else []
    return Prompt(
        before=prompt.before,
        after=prompt.after + forced,
        text=prompt.text + answer_prefix,
        supervised=prompt.supervised + [False] * len(forced),
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


def training_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    template: str = "nano_base",
    vision: bool = True,
    preface: str = "",
) -> Prompt:
    """An answered conversation with its training mask: whole assistant turns are supervised, with
    their role header and closing marker.

    Arguments and errors are those of `build_prompt`; the messages end with the assistant's turn.
    """
    _check_turns(messages)
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        raise ArgumentError("prompt", "messages", "end with an answer", "none to learn from")
    placed = _place_vision(messages, vision, preface)
    return _encode(tokenizer, _pieces(placed, chat_template(template)))


def render_chat(messages: Sequence[Message], template: str = "nano_base") -> str:
    """The conversation as text, placeholders untouched. If the last turn is the user's (or an
    assistant's without content), the text ends with the header of the next answer."""
    _check_turns(messages)
    return "".join(text for text, _ in _pieces(messages, chat_template(template)))


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
        if role == "user" and not _RUN.sub("", content).strip():
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


def _place_vision(messages: Sequence[Message], vision: bool, preface: str) -> list[Message]:
    """The messages with one `<image>` where the vision tokens go, the preface right behind it."""
    places = [i for i, message in enumerate(messages) for _ in _RUN.findall(message["content"])]
    if not vision:
        if places or preface:
            what = "a preface" if preface else "a placeholder for vision tokens"
            raise ArgumentError("prompt", "question", "be plain text without vision", what)
        return list(messages)
    if len(places) > 1:
        raise ArgumentError(
            "prompt",
            "vision tokens",
            "have one place (<image> or <video>; they form one contiguous span)",
            f"{len(places)} places",
        )
    at = places[0] if places else 0
    content, mark = messages[at]["content"], PLACEHOLDER + preface
    content = _RUN.sub(lambda _: mark, content) if places else mark + content
    return [{**message, "content": content} if i == at else message
            for i, message in enumerate(messages)]  # fmt: skip


def _pieces(messages: Sequence[Message], template: ChatTemplate) -> list[tuple[str, bool]]:
    """The conversation as (text, learnt in training) pieces, to be joined."""
    pieces = [(template.system, False)]
    for message in messages:
        learnt = message["role"] == "assistant"
        head, tail = template.assistant if learnt else template.user
        if message["content"]:
            pieces.append((head + message["content"] + tail, learnt))
    if not learnt or not message["content"]:
        pieces.append((template.assistant[0], False))
    return pieces


def _encode(tokenizer: PreTrainedTokenizerBase, pieces: list[tuple[str, bool]]) -> Prompt:
    """Tokenise the pieces one by one, cut at the placeholder."""
    ids: list[int] = []
    supervised: list[bool] = []
    cut = 0
    for piece, learnt in pieces:
        for i, text in enumerate(piece.split(PLACEHOLDER)):
            if i:
                cut = len(ids)
            new = tokenizer.encode(text, add_special_tokens=False) if text else []
            ids += new
            supervised += [learnt] * len(new)
    return Prompt(ids[:cut], ids[cut:], "".join(text for text, _ in pieces), supervised)
