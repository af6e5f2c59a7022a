"""A content stage keeps what the rule keeps however frames come, and holds no more than it needs."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.content_stage import WINDOW, ContentStage, held_tokens
from timeviper_fast.inference.rows import Rows
from timeviper_fast.model.content import changes, most_changed

WIDTH, EACH = 12, 5


def rule(prune: float, match="place") -> CompressionStage:
    return CompressionStage(0, "content", 1.0, transfer=False, prune=prune, match=match)


def video(frames: int, seed: int = 0) -> torch.Tensor:
    """Frames that change by little at a time, with cuts and exact repetitions."""
    generator = torch.Generator().manual_seed(seed)
    frame, taken = torch.randn(EACH, WIDTH, generator=generator), []
    for number in range(frames):
        step = (0.0, 0.02, 0.3, 2.0)[int(torch.randint(4, (), generator=generator))]
        if number:
            frame = frame + step * torch.randn(EACH, WIDTH, generator=generator)
        taken.append(frame)
    return torch.stack(taken)


def built(stage: CompressionStage, frames: int | None, text: int = 0) -> ContentStage:
    return ContentStage(stage, EACH, frames, text, torch.empty(0, WIDTH))


def rows_of(frames: torch.Tensor, first: int) -> Rows:
    hidden = frames.flatten(0, 1)
    return Rows(hidden[None], torch.arange(len(hidden)) + first * EACH)


def run(stage: ContentStage, frames: torch.Tensor, batch: int) -> tuple[torch.Tensor, Rows, int]:
    """The numbers that stay, all rows that leave, and the most tokens that were held."""
    leaving, most = [], 0
    for first in range(0, len(frames), batch):
        leaving += stage.push(rows_of(frames[first : first + batch], first))
        most = max(most, len(stage.held))
    leaving += stage.end()
    return stage.kept_numbers, Rows.join(leaving), most


def one_shot(stage: CompressionStage, frames: torch.Tensor) -> torch.Tensor:
    scores = changes(frames, None, stage.match == "best").flatten()
    return most_changed(scores, stage.kept_count(len(scores), EACH)).nonzero()[:, 0]


@pytest.mark.parametrize("match", ["place", "best"])
@pytest.mark.parametrize("prune", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("batch", [1, 2, 16, 33, 200])
def test_batches_keep_what_the_rule_keeps_of_the_whole(batch: int, prune: float, match) -> None:
    frames, stage = video(130), rule(prune, match)
    kept, left, most = run(built(stage, len(frames)), frames, batch)
    assert torch.equal(kept, one_shot(stage, frames))
    assert torch.equal(left.source, kept)
    assert torch.equal(left.hidden[0], frames.flatten(0, 1)[kept])
    assert most <= held_tokens(stage, frames.shape[:2].numel(), EACH)


def test_ties_across_batches_keep_the_earlier() -> None:
    still = video(1).expand(100, -1, -1)
    stage = rule(0.5)
    for batch in (1, 7, 100):
        kept, _, _ = run(built(stage, 100), still, batch)
        assert torch.equal(kept, one_shot(stage, still))


def test_memory_is_that_of_what_stays_and_of_a_few_frames() -> None:
    stage, frames = rule(0.9), 2_000
    made = built(stage, frames)
    most, bytes_of_row = 0, WIDTH * 4
    for first in range(0, frames, 50):
        list(made.push(rows_of(video(50, seed=first), first)))
        most = max(most, made.nbytes)
    assert most <= (0.1 * frames + 32) * EACH * bytes_of_row
    assert not list(made.end())
    assert len(made.kept_numbers) == stage.kept_count(frames * EACH, EACH)


def test_text_between_frames_stays_in_its_place() -> None:
    frames, stage = video(40), rule(0.8)
    made, leaving, want = built(stage, 40, text=41 * 2), [], []
    kept = set(one_shot(stage, frames).tolist())
    for number, frame in enumerate(frames):
        label = torch.full((1, 2, WIDTH), float(number))
        leaving += made.push(Rows(label, torch.full((2,), -1)))
        leaving += made.push(rows_of(frame[None], number))
        own = range(number * EACH, (number + 1) * EACH)
        want += [-1, -1, *(token for token in own if token in kept)]
    left = Rows.join([*leaving, *made.end()])
    assert left.source.tolist() == want
    assert left.hidden[0, left.source < 0, 0].tolist() == [n for n in range(40) for _ in (0, 1)]


@pytest.mark.parametrize("batch", [1, 5, 16, 100])
def test_without_the_number_of_frames_each_window_keeps_its_own(batch: int) -> None:
    frames, stage = video(75), rule(0.7)
    made = built(stage, None)
    assert not made.exact
    kept, _, _ = run(made, frames, batch)
    want = []
    scores = changes(frames, None, best=False)
    for first in range(0, 75, WINDOW):
        last = min(first + WINDOW, 75)
        quota = stage.kept_count(last * EACH, EACH) - stage.kept_count(first * EACH, EACH)
        own = most_changed(scores[first:last].flatten(), quota)
        want += (own.nonzero()[:, 0] + first * EACH).tolist()
    assert kept.tolist() == want
    # at every moment as many tokens stay as the rule keeps of the frames so far
    assert len(kept) == stage.kept_count(75 * EACH, EACH)


def test_a_fork_ends_and_the_stage_goes_on() -> None:
    frames, stage = video(90), rule(0.6)
    made = built(stage, None)
    for first in range(0, 90, 10):
        list(made.push(rows_of(frames[first : first + 10], first)))
        fork = made.fork()
        list(fork.end())
        until, _, _ = run(built(stage, None), frames[: first + 10], 3)
        assert torch.equal(fork.kept_numbers, until)


def test_a_stored_stage_goes_on() -> None:
    frames, stage = video(60), rule(0.6, "best")
    whole, _, _ = run(built(stage, 60), frames, 7)
    first, second = built(stage, 60), built(stage, 60)
    list(first.push(rows_of(frames[:23], 0)))
    state = {name: tensor.clone() for name, tensor in first.state.items()}
    second.restore(state, first.kept_numbers, first.arrived, first.settled)
    list(second.push(rows_of(frames[23:], 23)))
    list(second.end())
    assert torch.equal(second.kept_numbers, whole)


def test_a_part_of_a_frame_is_refused() -> None:
    made = built(rule(0.5), 3)
    with pytest.raises(ValueError, match=r"come in whole frames of 5 tokens .*, got '4 tokens'"):
        list(made.push(rows_of(video(1), 0)[:4]))
