"""A question, or a conversation, to token ids around the vision tokens.

In the prompt's text `<image>` stands for a run of them. The text is cut there and its pieces are
tokenised one by one, so no placeholder is embedded. A tokenizer that has `<image>` and the role
markers as special tokens splits there too, so the ids are those of the whole text.

What users and assistants say is words, whatever it looks like: `<image>`, `<video>`, role markers
and the tokenizer's other special tokens are cut behind their first character and so become ordinary
tokens. Nobody ends a turn, or moves the vision tokens, by writing about such a token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from timeviper_fast.errors import ArgumentError, fail, is_integer
from timeviper_fast.layout import VisualSpan
from timeviper_fast.text.labels import LabelIds
from timeviper_fast.text.messages import Message, check_turns, expect_unicode
from timeviper_fast.text.template import (
    PLACEHOLDER,
    ChatTemplate,
    Draft,
    Turn,
    chat_template,
    headers_apart,
    render,
    special_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Prompt",
    "build_prompt",
    "check_answered",
    "label_ids",
    "render_chat",
    "stop_token_ids",
    "training_prompt",
    "video_sentence",
    "vision_preface",
]

IGNORE_INDEX = -100  # torch's cross entropy skips these labels

_SWITCH = re.compile("/think|/no_think")


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt with a gap where the vision tokens go.

    Attributes:
        before: text ids in front of the vision tokens; empty for a prompt without vision.
        after: text ids behind them.
        text: the tokenised text, in which one `<image>` stands for each run of vision tokens, or
            for a whole video with the labels of its frames.
        supervised: for each id of the text, whether training learns it; all False in a question.
        between: text ids between the runs of vision tokens; one list fewer than there are runs.
        thinks: whether the answer begins with the model's thinking.
    """

    before: list[int]
    after: list[int]
    text: str
    supervised: list[bool]
    between: list[list[int]] = field(default_factory=list)
    thinks: bool = False

    def labelled(self, openings: Sequence[list[int]]) -> Prompt:
        """The prompt of a video whose frames have labels, given by the ids in front of each one's
        vision tokens (`LabelIds.openings`); none: as it is."""
        if not openings:
            return self
        first, *further = openings
        supervised = [False] * sum(map(len, openings)) + self.supervised
        return replace(self, before=self.before + first, between=further, supervised=supervised)

    def first_runs(self, runs: int) -> Prompt:
        """The prompt with its first `runs` runs of vision tokens alone."""
        return replace(self, between=self.between[: runs - 1])

    def span(self, vision_tokens: int) -> VisualSpan:
        """From the first of `vision_tokens` tokens to the last, texts between runs included."""
        return VisualSpan(len(self.before), vision_tokens + sum(map(len, self.between)))

    def length(self, vision_tokens: int) -> int:
        """Tokens of the whole sequence."""
        return self.span(vision_tokens).stop + len(self.after)

    def labels(self, vision_tokens: int) -> list[int]:
        """Training labels of the whole sequence, not shifted; -100 where nothing is learnt. The
        vision tokens must form one run."""
        ids = self.before + self.after
        labels = [i if learnt else IGNORE_INDEX for i, learnt in zip(ids, self.supervised)]
        cut = len(self.before)
        return labels[:cut] + [IGNORE_INDEX] * vision_tokens + labels[cut:]


def video_sentence(seconds: float, frames: int, template: str = "nano_base") -> str:
    """The sentence that tells the model how its frames were sampled, for questions about times."""
    form = chat_template(template).seconds
    written = format(seconds, form) if form else round(seconds, 2)
    return (
        f"The video lasts for {written} seconds, "
        f"and {frames} frames are uniformly sampled from it. "
    )


def vision_preface(template: str, seconds: float | None = None, frames: int = 0) -> str:
    """The text directly behind the vision tokens, as `build_prompt` takes it.

    Args:
        template: the chat template.
        seconds: how long the video is; None leaves the sentence about it out.
        frames: how many frames of it the model sees.
    """
    sentence = "" if seconds is None else video_sentence(seconds, frames, template)
    return chat_template(template).behind_vision + sentence


def build_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str | Sequence[Message],
    *,
    template: str = "nano_base",
    vision: bool = True,
    preface: str = "",
    answer_prefix: str = "",
    placeholder: str | None = None,
    runs: int = 1,
    video: bool = False,
    think: bool | None = None,
) -> Prompt:
    """The prompt that asks for an answer: [system][vision][preface][question][answer header].

    Args:
        tokenizer: any Hugging Face tokenizer.
        question: text, or messages {"role", "content"} that take turns and end with the user's.
            All of it is words: a `<video>` or the name of a special token in it is text. Some
            templates take a "system" message in front.
        template: a name that `chat_template` knows.
        vision: whether vision tokens are part of the prompt.
        preface: text directly behind the vision tokens, such as `vision_preface(...)`.
        answer_prefix: words that the answer is forced to begin with; tokenised on their own.
        placeholder: a mark, such as "<image>", that moves the vision tokens to its place in the
            messages (repeated directly behind itself, it is one place). None, or no such mark in
            the text: they go in front of the first question.
        runs: how many runs of vision tokens there are, such as several pictures. More than one need
            as many marks.
        video: whether the vision tokens are a video; else they are pictures. Where the template
            labels a video's frames, the prompt has the text around the labels alone, to which
            `Prompt.labelled` adds them.
        think: whether the model thinks before it answers. None: what the last `/think` or
            `/no_think` in the messages says, else not.

    Raises:
        ValueError: `think` for a template without that switch, a tokenizer without the template's
            vision marks, blank question, text that is no UTF-8, roles out of order, another number
            of places than runs, a place for vision without vision, or an unknown template.

    Source: upstream TimeViper's conversation templates.
    """
    chat = chat_template(template)
    messages = conversation(question, answer_prefix, open_answers=chat.open_answers)
    system, messages, think = _instructions(messages, chat, think)
    if think and answer_prefix:
        rule = "be left out for a model that thinks first"
        raise ArgumentError("prompt", "answer_prefix", rule, repr(answer_prefix))
    turns = _place_vision(messages, vision, preface, placeholder, runs)
    special = special_tokens(tokenizer, chat)
    if vision:
        # refuses a tokenizer without the marks
        label_ids(tokenizer, template)
    begin = (tokenizer.bos_token or "") if chat.begins else ""
    how = {"begin": begin, "system": system, "video": video, "think": think}
    draft = render(turns, chat, special, **how)  # type: ignore[arg-type]
    # tokenise the text in one piece: a tokenizer without the role markers may merge across them
    prompt = _encode(tokenizer, draft, [(0, len(draft.text), False)])
    forced = Draft(special)
    forced.say(answer_prefix)
    prefix = _encode(tokenizer, forced, [(0, len(answer_prefix), False)])
    return Prompt(
        before=prompt.before,
        after=prompt.after + prefix.after,
        text=prompt.text + answer_prefix,
        supervised=prompt.supervised + prefix.supervised,
        between=prompt.between,
        thinks=think,
    )


def label_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> LabelIds | None:
    """What labels the frames of a video; None for a template without labels.

    Raises:
        ValueError: the tokenizer lacks a mark that stands beside vision tokens.
    """
    labels = chat_template(template).labels
    return None if labels is None else LabelIds(tokenizer, labels)


def _instructions(
    messages: Sequence[Message], chat: ChatTemplate, think: bool | None
) -> tuple[str | None, Sequence[Message], bool]:
    """The system message, the others without switches, and whether the model thinks first."""
    if messages[0]["role"] == "system" and chat.around_system is None:
        rule = "begin with the user's: the template has no system message"
        raise ArgumentError("prompt", "messages", rule, "'system' as turn 0")
    if chat.think is None:
        if think is not None:
            rule = "be left out for a model whose template has no such switch"
            fail("prompt", "think", rule, think)
        return None, messages, False
    said, asked = list[Message](), False
    for message in messages:
        content = message["content"]
        if message["role"] != "assistant":
            for found in _SWITCH.findall(content):
                asked = found == "/think"
            content = _SWITCH.sub("", content).strip()
        said.append({"role": message["role"], "content": content})
    think = asked if think is None else think
    if said[0]["role"] == "system":
        return said[0]["content"], said[1:], think
    return None, said, think


def conversation(
    question: str | Sequence[Message], answer_prefix: str = "", *, open_answers: bool = False
) -> Sequence[Message]:
    """Check a question and return it as messages; `open_answers` allows empty answers.

    Raises:
        ValueError: as `build_prompt` for these arguments.
    """
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    check_turns(messages, open_answers, system=True)
    expect_unicode("answer_prefix", answer_prefix)
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
    check_turns(messages)
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
    chat = chat_template(template)
    if vision and chat.labels is not None:
        rule = "be one without labels of frames, which training does not write yet"
        fail("prompt", "template", rule, template)
    turns = _place_vision(messages, vision, preface, placeholder, 1)
    draft = render(turns, chat, special_tokens(tokenizer, chat))
    pieces = draft.pieces if learn_header else headers_apart(draft.pieces, chat)
    return _encode(tokenizer, draft, pieces)


def render_chat(messages: Sequence[Message], template: str = "nano_base") -> str:
    """The conversation as text, without vision tokens. If the last turn is the user's (or an
    assistant's without content), the text ends with the header of the next answer."""
    chat = chat_template(template)
    check_turns(messages, chat.open_answers, system=True)
    system, messages, think = _instructions(messages, chat, None)
    turns = _place_vision(messages, False, "", None, 1)
    return render(turns, chat, None, system=system, think=think).text


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


def _place_vision(
    messages: Sequence[Message], vision: bool, preface: str, placeholder: str | None, runs: int
) -> list[Turn]:
    """The messages as turns, one or more of them with places for the vision tokens."""
    if placeholder is not None and not (isinstance(placeholder, str) and placeholder):
        fail("prompt", "placeholder", "be a string or None", placeholder)
    if not (is_integer(runs) and runs >= 1):
        fail("prompt", "runs", "be an integer of 1 or more", runs)
    turns = [Turn(message["role"], [message["content"]]) for message in messages]
    if placeholder:
        # For one run, marks one after the other count as one place, whatever the number of frames.
        mark = re.compile(f"(?:{re.escape(placeholder)}){'+' if runs == 1 else ''}")
        turns = [Turn(turn.role, mark.split(turn.texts[0])) for turn in turns]
    places = sum(len(turn.texts) - 1 for turn in turns)
    if (places or preface) and not vision:
        what = "a preface" if preface else "a placeholder for vision tokens"
        raise ArgumentError("prompt", "question", "be plain text without vision", what)
    if runs == 1 and places > 1:
        rule = f"have one place (one run of {placeholder}; they form one contiguous span)"
        raise ArgumentError("prompt", "vision tokens", rule, f"{places} places")
    if runs > 1 and places != runs:
        rule = f"have a place in the question for each of their {runs} runs"
        raise ArgumentError("prompt", "vision tokens", rule, f"{places} places")
    for i, turn in enumerate(turns):
        if turn.role == "user" and not "".join(turn.texts).strip():
            fail("prompt", "question", "not be empty or blank", messages[i]["content"])
    if vision and not places:
        turns[0].texts.insert(0, "")
    for turn in turns:
        turn.texts[1:] = [preface + text for text in turn.texts[1:]]
    return turns


def _encode(
    tokenizer: PreTrainedTokenizerBase, draft: Draft, pieces: Sequence[tuple[int, int, bool]]
) -> Prompt:
    """Tokenise the pieces one by one, each cut where the draft says."""
    texts: list[list[int]] = [[]]
    supervised: list[bool] = []
    gaps = {edge for place in draft.places for edge in (place, place + len(PLACEHOLDER))}
    for start, stop, learnt in pieces:
        inner = {cut for cut in (*draft.cuts, *gaps) if start < cut < stop}
        for begin, end in pairwise(sorted({start, stop} | inner)):
            if begin in draft.places:
                texts.append([])
                continue
            new = tokenizer.encode(draft.text[begin:end], add_special_tokens=False)
            texts[-1] += new
            supervised += [learnt] * len(new)
    before, *between, after = texts if len(texts) > 1 else ([], texts[0])
    return Prompt(before, after, draft.text, supervised, between)
