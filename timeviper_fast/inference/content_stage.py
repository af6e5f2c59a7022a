"""Which vision tokens a content stage keeps, decided while frames arrive.

The rule ranks all tokens of the video. A token that is not among the best k of those that have come
can never be among the best k of all, so that k tokens are held, and those of a few frames more.
The held ones are then exactly those of the rule, for any batches of frames.

A stream's number of frames is not known, and with it neither k nor what will still come. There the
video is cut into windows of 16 frames, counted from its first frame; each keeps its most changed
tokens, as many as bring the total to the rule's number for all frames so far. The choice depends on
nothing but the frames, but it differs from the rule's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import fail
from timeviper_fast.inference.rows import Grid, Rows
from timeviper_fast.model.cache import enlarged
from timeviper_fast.model.content import changes, most_changed
from timeviper_fast.model.transv import StageRecord

__all__ = ["WINDOW", "ContentStage", "held_tokens"]

# Frames between two selections among the held tokens: more would hold more of them, fewer would
# select more often.
_BETWEEN = 16
# frames of a window where the number of all frames is not known
WINDOW = 16
# rows that leave at a time
_PIECE = 1024


def held_tokens(stage: CompressionStage, tokens: int, frame_tokens: int) -> int:
    """The most vision tokens that are held of a video of `tokens`."""
    kept = stage.kept_count(tokens, frame_tokens)
    return min(kept + 2 * _BETWEEN * frame_tokens, tokens)


class ContentStage:
    """One content stage of a prefix: holds what may still stay, until its window is complete.

    Args:
        stage: its rule.
        frame_tokens: vision tokens of a frame; 0 where there is no vision.
        frames: of the video, if that is known; None chooses in windows.
        text: rows of text that will come, if that is known.
        like: a tensor (0, d_model) of the dtype, on the device where rows are held.

    Attributes:
        arrived, settled: vision tokens that have come, and those of them with a fate.
        kept: (n,) int64 on the CPU, the numbers of the tokens that stayed, in parts.
        exact: whether it keeps what the rule keeps.
    """

    # what uniform stages have besides
    dropped = None
    dropped_numbers: tuple[Tensor, ...] = ()

    def __init__(
        self,
        stage: CompressionStage,
        frame_tokens: int,
        frames: int | None,
        text: int,
        like: Tensor,
    ) -> None:
        self.stage, self.frame_tokens, self.exact = stage, frame_tokens, frames is not None
        self._window = WINDOW if frames is None else frames
        self.arrived = self.settled = 0
        self.kept: list[Tensor] = []
        self.grid = Grid(None)
        room = held_tokens(stage, self._window * frame_tokens, frame_tokens) + text
        self._rows = like.new_empty(1, room, like.shape[1])
        # of each held row: its vision token's number or -1, its change, its place in the video
        self._source = torch.empty(0, dtype=torch.int64)
        self._change = torch.empty(0)
        self._place = torch.empty(0, dtype=torch.int64)
        self._before: Tensor | None = None
        self._came = self._fresh = 0
        self._shared = False

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are held."""
        return self._rows.nbytes

    @property
    def held(self) -> Rows:
        """The rows that wait for a fate, in no order."""
        return Rows(self._rows[:, : len(self._source)], self._source)

    def push(self, rows: Rows) -> Iterator[Rows]:
        """Take the next rows, either text or vision tokens of whole frames; give those that go on,
        in order.

        Raises:
            ValueError: vision tokens that are not whole frames.
        """
        if not rows.vision:
            self._hold(rows, torch.full((len(rows),), float("inf")))
            return
        each = self.frame_tokens
        if not each or rows.vision != len(rows) or len(rows) % each:
            rule = f"come in whole frames of {each} tokens to a content stage"
            fail("session", "the video", rule, f"{len(rows)} tokens")
        frames, first = rows.hidden[0].unflatten(0, (-1, each)), 0
        while first < len(frames):
            left = self._window - (self.arrived - self.settled) // each
            count = min(_BETWEEN, left, len(frames) - first)
            part = frames[first : first + count]
            change = changes(part, self._before, self.stage.match == "best").flatten()
            self._before = part[-1].clone()
            # the one host sync of these frames
            self._hold(rows[first * each : (first + count) * each], change.cpu())
            self.arrived += count * each
            self._fresh += count
            first += count
            if count == left:
                yield from self._release()
            elif self._fresh >= _BETWEEN and not self._shared:
                self._select(self._quota(self._window))

    def end(self) -> Iterator[Rows]:
        """The rows that were held back, when no more come."""
        if len(self._source):
            yield from self._release()

    def _quota(self, frames: int) -> int:
        """Tokens that a window of so many frames keeps."""
        count, each = self.stage.kept_count, self.frame_tokens
        return count(self.settled + frames * each, each) - count(self.settled, each)

    def _hold(self, rows: Rows, change: Tensor) -> None:
        held = len(self._source)
        stop = held + len(rows)
        self._rows = enlarged(self._rows, held, stop)
        self._rows[:, held:stop] = rows.hidden
        self._source = torch.cat([self._source, rows.source])
        self._change = torch.cat([self._change, change])
        self._place = torch.cat([self._place, torch.arange(self._came, self._came + len(rows))])
        self._came += len(rows)

    def _staying(self, quota: int) -> Tensor:
        """(held,) bool: the `quota` most changed tokens, and all text."""
        text = int((self._source < 0).sum())
        quota = min(quota, len(self._source) - text)
        return most_changed(self._change, quota + text, self._place)

    def _select(self, quota: int) -> None:
        """Forget all but the `quota` most changed tokens. The last ones that stay move into the
        places of those that go."""
        stays = self._staying(quota)
        count = int(stays.sum())
        holes = (~stays[:count]).nonzero()[:, 0]
        last = stays[count:].nonzero()[:, 0] + count
        device = self._rows.device
        self._rows[:, holes.to(device)] = self._rows[:, last.to(device)]
        for values in (self._source, self._change, self._place):
            values[holes] = values[last]
        self._source, self._change, self._place = (
            values[:count].clone() for values in (self._source, self._change, self._place)
        )
        self._fresh = 0

    def _release(self) -> Iterator[Rows]:
        """Let the window go on: what stays of it, in order."""
        each = max(self.frame_tokens, 1)
        quota = self._quota((self.arrived - self.settled) // each)
        staying = self._staying(quota).nonzero()[:, 0]
        order = staying[self._place[staying].argsort()]
        source = self._source[order]
        self.kept.append(source[source >= 0])
        self.settled, self._fresh = self.arrived, 0
        for part in order.split(_PIECE):
            yield Rows(self._rows[:, part.to(self._rows.device)], self._source[part])
        self._clear()

    def _clear(self) -> None:
        """Hold nothing."""
        self._source, self._change, self._place = (
            values[:0] for values in (self._source, self._change, self._place)
        )

    @property
    def kept_numbers(self) -> Tensor:
        """(n,) int64, the video's tokens that stayed so far."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *self.kept])

    def record(self, came: Tensor, batch: int, device: torch.device) -> StageRecord:
        """What it did with the video's tokens `came` (n,) int64, without held ones."""
        kept = self.kept_numbers
        places = torch.searchsorted(came, kept).to(device).expand(batch, -1)
        return StageRecord(self.stage.layer, len(came), len(kept), places, None)

    def fork(self) -> ContentStage:
        """One that goes on apart. It shares the held rows, so it must end before this goes on."""
        fork = copy.copy(self)
        fork.kept, fork._shared = [*self.kept], True
        return fork

    @property
    def state(self) -> dict[str, Tensor]:
        """What a stream's file stores of it, besides counts and `kept`."""
        held = {"held.rows": self.held.hidden, "held.source": self._source}
        held |= {"held.change": self._change, "held.place": self._place}
        return held if self._before is None else {**held, "before": self._before}

    def restore(
        self, state: Mapping[str, Tensor], kept: Tensor, arrived: int, settled: int
    ) -> None:
        """Bring a fresh stage to a stored state."""
        self.kept, self.arrived, self.settled = [kept], arrived, settled
        before = state.get("before")
        self._before = None if before is None else before.to(self._rows.device)
        # text in front of the video has been pushed to the fresh stage already
        self._clear()
        self._hold(Rows(state["held.rows"], state["held.source"]), state["held.change"])
        self._place = state["held.place"].clone()
        self._came = int(self._place.max()) + 1 if len(self._place) else 0
