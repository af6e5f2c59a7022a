"""What a client is told when a request fails."""

from __future__ import annotations

from typing import Any

import torch

from timeviper_fast.errors import VideoError

__all__ = ["Fault", "fault_of", "invalid", "too_long"]

# characters of a message: a value of the request may have millions
_LONGEST = 1000


class Fault(Exception):
    """A request that fails, as the protocol has it.

    Args:
        status: of HTTP.
        message: for the client; it names no path of the server.
        param: the field of the request that is wrong.
        code: a word for programs.
        retry: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: int | None = None,
    ) -> None:
        # halves of surrogate pairs, which JSON may hold, are no UTF-8
        message = _shortened(message.encode("utf-8", "backslashreplace").decode(), _LONGEST)
        super().__init__(status, message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry = retry

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response. A request that took too long would take as long again."""
        headers = {} if self.retry is None else {"Retry-After": str(self.retry)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return {**headers, "x-should-retry": "false"} if self.status == 504 else headers


def invalid(param: str, rule: str, value: object = None, *, code: str = "invalid_value") -> Fault:
    """The fault of a field that breaks its rule."""
    got = "" if value is None else f", got {_short(value)}"
    return Fault(400, f"{param} must {rule}{got}", param=param, code=code)


def too_long() -> Fault:
    """The fault of a request whose time is over."""
    return Fault(504, "it took longer than this server's time limit", code="timeout")


def fault_of(error: Exception, path: str = "", name: str = "the video") -> Fault:
    """What a client is told of an error while a video was read or a question answered.

    Args:
        path: of the video's file, for which the client reads `name`.
    """
    if isinstance(error, Fault):
        return error
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        # its text has the plan's numbers, which a client can use
        return Fault(503, _told(error, path, name), code="out_of_memory", retry=30)
    if isinstance(error, VideoError):
        fault = error.fault.replace(path, name) if path else error.fault
        return Fault(400, fault, param="messages", code="invalid_video")
    if isinstance(error, OSError):
        reason = f"{name}: {error.strerror or 'it cannot be read'}"
        return Fault(400, reason, param="messages", code="invalid_video")
    if isinstance(error, (ValueError, NotImplementedError)):
        return Fault(400, _told(error, path, name), code="invalid_value")
    return Fault(500, "the server failed; its log says why", code="internal_error")


def _told(error: Exception, path: str, name: str) -> str:
    text = str(error) or type(error).__name__
    return text.replace(path, name) if path else text


def _short(value: object) -> str:
    return _shortened(repr(value), 80)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
