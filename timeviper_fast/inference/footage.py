"""What a session knows of its video."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from timeviper_fast.inference.encode import filling_note, token_seconds
from timeviper_fast.inference.ended import Prefill
from timeviper_fast.inference.evidence import Evidence, collect_evidence

__all__ = ["Footage", "bytes_of", "changed_after"]


@dataclass(frozen=True)
class Footage:
    """What a session knows of its video.

    Attributes:
        name: the source, as error messages print it.
        seconds: (frames,) float64, when each frame that was looked at is shown.
        duration: seconds of the part that was looked at.
        tokens_per_frame: vision tokens of a frame, or of `tubelet` frames.
        clip: frames that are encoded or merged together.
        is_image: whether it is a single image.
        lost_frames, notes: as in `Answer`.
        repeated: how many frames are copies of the last one, by the sampling policy.
        size: what `bytes_of` says of it.
        tubelet: frames that share their vision tokens, because each patch holds all of them.
    """

    name: str
    seconds: Tensor
    duration: float
    tokens_per_frame: int
    clip: int = 1
    is_image: bool = False
    lost_frames: int = 0
    notes: tuple[str, ...] = ()
    repeated: int = 0
    size: int | None = None
    tubelet: int = 1

    def token_seconds(self, tokens: int) -> Tensor:
        """(tokens,) the second of each vision token."""
        return token_seconds(self.seconds, self.counts(tokens), self.clip)

    def counts(self, tokens: int) -> list[int]:
        """Vision tokens of each frame, copies that fill the last clip included; those of a tubelet
        are shared out among its frames."""
        each, share = self.tokens_per_frame, self.tubelet
        edges = [each * i // share for i in range(share + 1)]
        return [b - a for a, b in pairwise(edges)] * -(-tokens // each)

    def evidence(self, read: Prefill, row: int) -> Evidence | None:
        """Where the model looked for question `row` of those that were read together."""
        counts = self.counts(read.segment.vision_present)
        return collect_evidence(read.records, self.seconds, counts, clip_frames=self.clip, row=row)

    @property
    def all_notes(self) -> tuple[str, ...]:
        """`notes`, and a sentence about the copies of the last frame, if there are any."""
        return (*self.notes, *filling_note(len(self.seconds), self.clip, self.repeated))


def bytes_of(name: str) -> int | None:
    """Bytes of a video's file, or of all files of its directory; None if it is neither."""
    path = Path(name)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size if path.is_file() else None


def changed_after(name: str, file: Path) -> bool:
    """Whether a video's file, or one of its directory, was written later than `file`."""
    path = Path(name)
    parts = [part for part in path.iterdir() if part.is_file()] if path.is_dir() else [path]
    written = file.stat().st_mtime_ns
    return any(part.stat().st_mtime_ns > written for part in parts if part.is_file())
