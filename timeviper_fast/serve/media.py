"""The video that a request names or brings. Nothing is fetched from the network."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from threading import Lock
from urllib.parse import unquote, urlsplit

from timeviper_fast.errors import ArgumentError
from timeviper_fast.serve.faults import Fault, fault_of, invalid

__all__ = ["Media", "MediaRoot"]

_DATA = re.compile(r"data:(video|image)/[\w.+-]{1,80};base64,", re.ASCII | re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# archives of arrays: a few bytes may stand for many
_ARRAYS = (b"\x93NUMPY", b"PK\x03\x04")
_PIECE = 1 << 20
# digests of files that are remembered
_REMEMBERED = 4096


@dataclass(frozen=True)
class Media:
    """A video of a request.

    Attributes:
        digest: SHA-256 of its bytes.
        name: as clients read it in errors.
        path: of a file under the root; None for a video that came in the request.
        data: the bytes of such a video.
        mark: size and times of the file when its digest was taken.
    """

    digest: str
    name: str
    path: Path | None = None
    data: bytes = b""
    mark: tuple[int, ...] = ()

    @property
    def source(self) -> Path | bytes:
        """What `TimeViper.open` takes."""
        return self.data if self.path is None else self.path

    def fault(self, error: Exception) -> Fault:
        """What a client is told of an error while this was read or asked about."""
        if self.path is None:
            # what came in a request is opened as "bytes"
            return fault_of(error, "bytes:", "the video:")
        return fault_of(error, str(self.path), self.name)

    def check_unchanged(self) -> None:
        """Raise a Fault if the file is another than the one whose digest was taken."""
        if self.path is not None and _mark(self.path.stat()) != self.mark:
            raise Fault(409, f"{self.name} was written to while it was read", code="video_changed")


class MediaRoot:
    """The folder whose files may be asked about, and how large a video in a request may be.

    Args:
        root: the folder. A path is followed through all links, and must end in the folder.
        most_bytes: of a video in a request, before its base64 is decoded.

    Raises:
        ArgumentError: the root is no folder.
    """

    def __init__(self, root: str | os.PathLike[str], most_bytes: int) -> None:
        self.root, self.most_bytes = Path(root).resolve(), most_bytes
        if not self.root.is_dir():
            raise ArgumentError("serve", "media_root", "be a folder", os.fspath(root))
        # absolute, with its links as they are
        self._called = os.path.abspath(root)
        self._digests: OrderedDict[tuple[str, tuple[int, ...]], Future[str]] = OrderedDict()
        self._turn = Lock()

    def find(self, url: str) -> Media:
        """The video of a URL: `data:video/...;base64,`, `file://`, or a path under the root.

        Raises:
            Fault: another kind of URL, no such file, or one that may not be read.
        """
        if url[:5].lower() == "data:":
            return self._brought(url)
        if _SCHEME.match(url) and url[:5].lower() != "file:" and not self._is_name(url):
            rule = "be a data: URL, a file:// URL or a path (nothing is fetched from a network)"
            raise invalid("url", rule, url, code="unsupported_url")
        return self._file(_path_of(url))

    def _is_name(self, text: str) -> bool:
        """Whether what looks like a URL is the name of a file under the root, such as "1:2.mp4"."""
        try:
            return (self.root / text).is_file()
        except (OSError, ValueError):
            return False

    def _brought(self, url: str) -> Media:
        head = _DATA.match(url)
        if head is None:
            rule = "be data:video/TYPE;base64,... or data:image/TYPE;base64,..."
            raise invalid("url", rule, url[:40], code="unsupported_url")
        length = len(url) - head.end()
        if length // 4 * 3 > self.most_bytes + 2:
            message = f"a video in a request may have {self.most_bytes:,} bytes at most"
            raise Fault(413, message, param="messages", code="video_too_large")
        try:
            data = base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise invalid("url", "hold base64", code="invalid_base64") from None
        if not data:
            raise invalid("url", "hold a video", "no bytes", code="invalid_video")
        if data.startswith(_ARRAYS):
            rule = "hold a video or an image, not NumPy arrays"
            raise invalid("url", rule, code="invalid_video")
        return Media(sha256(data).hexdigest(), "the video", data=data)

    def _file(self, given: str) -> Media:
        try:
            path = (self.root / self._below(given)).resolve()
        except (OSError, RuntimeError, ValueError):
            raise invalid("url", "be the path of a file", given) from None
        if not path.is_relative_to(self.root):
            raise _outside()
        name = path.relative_to(self.root).as_posix()
        try:
            found = path.stat()
        except (OSError, ValueError):
            raise _absent(name) from None
        if not S_ISREG(found.st_mode):
            raise _absent(name)
        try:
            return Media(self._digest(path, _mark(found)), name, path, mark=_mark(found))
        except OSError:
            raise _absent(name) from None

    def _below(self, given: str) -> str:
        """A path relative to the root, by its words alone: `../NAME/...` would tell whether NAME is
        the root's name."""
        for root in (str(self.root), self._called):
            if given.startswith(beginning := root.rstrip(os.sep) + os.sep):
                given = given[len(beginning) :]
                break
        below = os.path.normpath(given)
        if os.path.isabs(below) or below.split(os.sep)[0] == os.pardir:
            raise _outside()
        return below

    def _digest(self, path: Path, mark: tuple[int, ...]) -> str:
        """SHA-256 of a file, which is read again only after it has changed, and by one thread."""
        key = (str(path), mark)
        with self._turn:
            known = self._digests.get(key)
            if known is None:
                reading = self._digests[key] = Future[str]()
            if len(self._digests) > _REMEMBERED:
                self._digests.popitem(last=False)
        if known is not None:
            return known.result()
        try:
            reading.set_result(_sha256(path))
        except BaseException as error:
            with self._turn:
                self._digests.pop(key, None)
            reading.set_exception(error)
        return reading.result()


def _path_of(url: str) -> str:
    """The path of a file:// URL, or of a text that is one."""
    if url[:5].lower() != "file:":
        path = url
    else:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise invalid("url", "be a file:// URL", url) from None
        if parts.netloc not in ("", "localhost"):
            rule = "name no host: file:///PATH, or the path alone"
            raise invalid("url", rule, url, code="unsupported_url")
        path = unquote(parts.path)
    if not path.strip() or "\0" in path or not _is_text(path):
        raise invalid("url", "be the path of a file", path)
    return path


def _is_text(text: str) -> bool:
    """Whether it can be a file's name: JSON may hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sha256(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _outside() -> Fault:
    # said of every path out there, so that nobody learns what lies there
    message = "the path leads out of the server's media folder"
    return Fault(403, message, param="messages", code="media_forbidden")


def _absent(name: str) -> Fault:
    return Fault(404, f"{name}: no such file", param="messages", code="media_not_found")


def _mark(found: os.stat_result) -> tuple[int, ...]:
    # copies may set back the time of the contents, not that of the file's entry
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
