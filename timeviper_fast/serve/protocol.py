"""Requests that are read and checked, and the bodies of answers, as OpenAI's chat completions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from timeviper_fast.errors import FROM_0, TEXT, ArgumentError, Kind, is_integer, is_number
from timeviper_fast.inference.request import Opening, Question, Sampling
from timeviper_fast.serve.faults import Fault, invalid
from timeviper_fast.serve.worker import Answered

__all__ = ["Asked", "Defaults", "Fields", "Reply", "read_object", "read_request"]

# fields that change nothing here
_IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# fields of the protocol that are not built, and the values that ask for nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
_BOOL = Kind("be true or false", lambda v: isinstance(v, bool))
_COUNT = Kind("be an integer of 1 or more", lambda v: is_integer(v) and v >= 1)
_OBJECT = Kind("be an object", lambda v: isinstance(v, dict))
_NUMBER = Kind("be a number", is_number)
_INTEGER = Kind("be an integer", is_integer)
_STRING = Kind("be a text", lambda v: isinstance(v, str))
_LIST = Kind("be a list with an item or more", lambda v: isinstance(v, list) and bool(v))
_PARTS = ("video_url", "image_url")


@dataclass(frozen=True)
class Defaults:
    """What holds where a request says nothing.

    Attributes:
        name: of the model.
        opening: how videos are read.
        max_new_tokens: the most that a request may ask for.
    """

    name: str
    opening: Opening
    max_new_tokens: int = 1024


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        model: the model's name.
        url: of the video.
        question, opening: what is asked, and how the video is read.
        stream: whether the answer is sent while it is made.
        usage: whether a stream ends with the numbers of tokens.
        evidence: whether the answer says where the model looked.
    """

    model: str
    url: str
    question: Question
    opening: Opening
    stream: bool = False
    usage: bool = False
    evidence: bool = False


class Fields:
    """The fields of an object of a request; each is taken once, and none may be left.

    Args:
        fields: by name.
        where: the object's own place in the request.
    """

    def __init__(self, fields: Mapping[str, Any], where: str = "") -> None:
        # null stands for a field that is not there
        self._left = {name: value for name, value in fields.items() if value is not None}
        self._where = f"{where}." if where else ""

    def take(self, name: str, kind: Kind, default: Any = None) -> Any:
        """A field that breaks no rule of its kind; `default` if it is not there."""
        value = self._left.pop(name, None)
        if value is None:
            return default
        if not kind.holds(value):
            raise invalid(f"{self._where}{name}", kind.rule, value)
        return value

    def need(self, name: str, kind: Kind) -> Any:
        """As `take`, of a field that must be there."""
        value = self.take(name, kind)
        if value is None:
            raise invalid(f"{self._where}{name}", "be given", code="missing_field")
        return value

    def inner(self, name: str) -> Fields:
        """The fields of an object in here; none if it is not there."""
        return Fields(self.take(name, _OBJECT, {}), f"{self._where}{name}")

    def end(self) -> None:
        """Refuse a field that nobody has taken."""
        if self._left:
            name = f"{self._where}{min(self._left)}"[:80].encode("ascii", "replace").decode()
            raise invalid(name, "be left out: this server does not know it", code="unknown_field")


def read_request(body: bytes, defaults: Defaults) -> Asked:
    """The request of a body.

    Raises:
        Fault: it breaks a rule; the first that is found is told.
    """
    given = read_object(body)
    fields = Fields({k: v for k, v in given.items() if k not in _IGNORED})
    name = fields.need("model", TEXT)
    if name != defaults.name:
        message = f"no model {name[:80]!r}; this server has {defaults.name!r}"
        raise Fault(404, message, param="model", code="model_not_found")
    _refuse(fields)
    url, messages = _messages(fields.need("messages", _LIST))
    stream = fields.take("stream", _BOOL, False)
    usage = fields.inner("stream_options")
    with_usage = usage.take("include_usage", _BOOL, False)
    usage.take("include_obfuscation", _BOOL)
    usage.end()
    own = fields.inner("timeviper")
    try:
        opening = _opening(fields, own, defaults)
        question = _question(fields, own, messages, defaults)
    except ArgumentError as error:
        raise Fault(400, str(error), param=error.argument, code="invalid_value") from None
    evidence = own.take("evidence", _BOOL, False)
    own.end()
    fields.end()
    return Asked(name, url, question, opening, stream, with_usage, evidence)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        Fault: it is no JSON, or another value than an object.
    """
    try:
        # json would take UTF-16 and UTF-32, too
        given = json.loads(body.decode(), parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise invalid("body", "be JSON in UTF-8", code="invalid_json") from None
    if not isinstance(given, dict):
        raise invalid("body", "be a JSON object", code="invalid_json")
    return given


def _no_constant(name: str) -> None:
    """NaN and Infinity are no JSON, though Python reads them."""
    raise ValueError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these fields. One of two equal names would be dropped in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise invalid("body", "give each field of an object once", code="invalid_json")
    return found


def _refuse(fields: Fields) -> None:
    """Refuse what the protocol has and this server does not, unless it asks for nothing."""
    for name, neutral in _NEUTRAL.items():
        known = " or ".join(json.dumps(value) for value in neutral)
        fields.take(name, Kind(f"be left out, or {known}", neutral.__contains__))


def _opening(fields: Fields, own: Fields, defaults: Defaults) -> Opening:
    """How the video is read: our own fields, and the number of frames as other servers have it."""
    frames = fields.inner("media_io_kwargs")
    video = frames.inner("video")
    number = video.take("num_frames", _COUNT)
    video.end()
    frames.end()
    told = fields.inner("chat_template_kwargs")
    number = told.take("num_frames", _COUNT, number)
    told.end()
    policy = own.take("sample", _STRING, None if number is None else f"uniform:{number}")
    given = {
        "policy": policy,
        "start": own.take("start", FROM_0),
        "end": own.take("end", FROM_0),
        "stages": own.take("stages", _STRING),
    }
    return replace(defaults.opening, **{k: v for k, v in given.items() if v is not None})


def _question(
    fields: Fields, own: Fields, messages: list[dict[str, str]], defaults: Defaults
) -> Question:
    usual = min(Question.max_new_tokens, defaults.max_new_tokens)
    older = fields.take("max_tokens", _COUNT, usual)
    most = fields.take("max_completion_tokens", _COUNT, older)
    if most > defaults.max_new_tokens:
        raise invalid("max_tokens", f"be {defaults.max_new_tokens} at most on this server", most)
    sampling = Sampling(
        temperature=fields.take("temperature", _NUMBER, 0.0),
        top_k=fields.take("top_k", _INTEGER, 0),
        top_p=fields.take("top_p", _NUMBER, 1.0),
        seed=fields.take("seed", _INTEGER),
        repetition_penalty=fields.take("repetition_penalty", _NUMBER),
    )
    prefix = own.take("answer_prefix", _STRING, "")
    think = own.take("think", _BOOL)
    return Question(messages, most, sampling, prefix, think=think)


def _messages(given: list[Any]) -> tuple[str, list[dict[str, str]]]:
    """The video's URL, and the conversation in words."""
    urls: list[str] = []
    messages: list[dict[str, str]] = []
    for number, one in enumerate(given):
        where = f"messages[{number}]"
        if not isinstance(one, dict):
            raise invalid(where, "be an object", one)
        fields = Fields(one, where)
        role = fields.need("role", _STRING)
        if role not in ("user", "assistant"):
            rule = "be user or assistant (say in the first question what a system would)"
            raise invalid(f"{where}.role", rule, role)
        for name in ("name", "refusal", "annotations"):
            fields.take(name, Kind("be there", lambda v: True))
        content = fields.need("content", Kind("be a text or a list", _is_content))
        fields.end()
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found, words = _parts(parts, f"{where}.content")
        if found and (role != "user" or any(m["role"] == "user" for m in messages)):
            raise invalid(where, "hold no video: it stands in the first message of the user")
        urls += found
        messages.append({"role": role, "content": words})
    if len(urls) != 1:
        raise invalid("messages", "hold one video or image", len(urls), code="invalid_video")
    return urls[0], messages


def _is_content(value: Any) -> bool:
    return isinstance(value, (str, list))


def _parts(parts: list[Any], where: str) -> tuple[list[str], str]:
    """URLs and words of a message's parts; several texts are lines."""
    urls, words = [], []
    for number, part in enumerate(parts):
        at = f"{where}[{number}]"
        if not isinstance(part, dict):
            raise invalid(at, "be an object", part)
        fields = Fields(part, at)
        kind = fields.need("type", _STRING)
        if kind == "text":
            words.append(fields.need("text", _STRING))
        elif kind in _PARTS:
            inner = fields.inner(kind)
            urls.append(inner.need("url", _STRING))
            inner.take("detail", _STRING)
            inner.end()
        else:
            raise invalid(f"{at}.type", "be text, video_url or image_url", kind)
        fields.end()
    return urls, "\n".join(words)


class Reply:
    """The bodies of one answer: one object, or chunks of a stream.

    Args:
        asked: the request.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time())}

    def whole(self, answered: Answered) -> dict[str, Any]:
        """The answer as one object."""
        message = {"role": "assistant", "content": answered.answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None}
        return {
            **self._head,
            "object": "chat.completion",
            "model": self.asked.model,
            "choices": [{**choice, "finish_reason": answered.answer.finish}],
            "usage": _usage(answered),
            "timeviper": self._own(answered),
        }

    def piece(self, **delta: str) -> dict[str, Any]:
        """A chunk with some text; the first one has the role."""
        return self._chunk([_choice(delta, None)])

    def last(self, answered: Answered) -> dict[str, Any]:
        """The chunk that ends the text."""
        ended = self._chunk([_choice({}, answered.answer.finish)])
        return {**ended, "timeviper": self._own(answered)}

    def usage(self, answered: Answered) -> dict[str, Any]:
        """The chunk with the numbers of tokens."""
        return {**self._chunk([]), "usage": _usage(answered)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = {"object": "chat.completion.chunk", "model": self.asked.model}
        return {**self._head, **kind, "choices": choices}

    def _own(self, answered: Answered) -> dict[str, Any]:
        """What our answers have beyond the protocol."""
        answer = answered.answer
        own = {
            "frames": len(answer.frame_seconds),
            "duration": answered.duration,
            "held": answered.held,
            "stops": {
                "video": [asdict(stop) for stop in answered.opened],
                "question": [asdict(stop) for stop in answer.stops],
            },
            "stages": [asdict(stage) for stage in answer.stages],
            "kept_seconds": sorted(set(answer.kept_seconds)),
            "lost_frames": answer.lost_frames,
            "thinking": answer.thinking,
            "notes": list(answer.notes),
            "model_note": answer.model_note,
        }
        if not self.asked.evidence:
            return own
        evidence = answer.evidence
        told = None if evidence is None else {**asdict(evidence), "spans": evidence.spans()}
        return {**own, "evidence": told}


def _choice(delta: dict[str, str], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _usage(answered: Answered) -> dict[str, int]:
    asked, made = answered.prompt_tokens, len(answered.answer.token_ids)
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
