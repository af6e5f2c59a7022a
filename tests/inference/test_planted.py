"""Mistakes that a session could make, planted: for each, a named test of the real ones must fail.

Each mistake is the shortest wrong code in the place where the right code stands, so that a law
which would pass it is seen here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
import torch.nn.functional as F

from tests.inference import test_ended, test_prefix
from tests.inference.one_go import NEW
from timeviper_fast.inference import generate
from timeviper_fast.inference.ended import Ended, Prefill
from timeviper_fast.inference.rows import RowStore
from timeviper_fast.inference.thinning import Rhythm, UniformStage
from timeviper_fast.model.cache import AttentionState, HybridCache
from timeviper_fast.model.mamba_state import MambaState

Patch = pytest.MonkeyPatch
_fork, _at_the_stage, _told = MambaState.fork, Ended._at_the_stage, Ended._told
_append, _join, _read, _sample = RowStore.append, HybridCache.join, Ended.read, generate.sample


def one_go(schedule: str) -> Callable[[], None]:
    return lambda: test_ended.test_a_video_read_once_answers_as_one_go(schedule)


def shared_states(patch: Patch) -> None:
    def fork(state: MambaState, batch: int, room: int = 0) -> MambaState:
        made = _fork(state, batch, room)
        if batch == 1:
            made.ring, made.position, made.ssm = state.ring, state.position, state.ssm
        return made

    patch.setattr(MambaState, "fork", fork)


def counts_of_those_left(patch: Patch) -> None:
    def at_the_stage(video: Ended, length: int):
        segment = _at_the_stage(video, length)
        return replace(segment, vision_tokens=segment.vision_present)

    patch.setattr(Ended, "_at_the_stage", at_the_stage)


def forgotten_stage(patch: Patch) -> None:
    def told(video: Ended, number: int, text: torch.Tensor) -> torch.Tensor:
        return text if number == 0 else _told(video, number, text)

    patch.setattr(Ended, "_told", told)


def nothing_held_back(patch: Patch) -> None:
    patch.setattr(Rhythm, "settled", lambda _, arrived: arrived)
    # the product would notice at the end: without its check, the law must
    patch.setattr(Rhythm, "exact", False)


def source_without_the_front(patch: Patch) -> None:
    def append(store: RowStore, rows) -> None:
        _append(store, rows)
        store._source[-1] = rows.source[rows.source >= 0]

    patch.setattr(RowStore, "append", append)


@dataclass(frozen=True)
class FromDecode(Ended):
    """A video and a question, continued from where decoding would."""

    @torch.no_grad()
    def read(self, texts, *, max_new_tokens: int, watch=None, on_pass=None) -> Prefill:
        [text] = texts
        cache = self.cache.fork(1, [99] * len(self.cache.layers))
        logits = self.backbone.logits(self.backbone(text, cache=cache)[0][:, -1:])[:, 0]
        lengths = self.lengths(text.shape[1], max_new_tokens)
        segment = self._whole(text.shape[1])
        return Prefill(cache, logits, [*self.records], lengths, segment)


def decode_state_continued(patch: Patch) -> None:
    def after(video: Ended, text: torch.Tensor) -> Ended:
        read = _read(video, [text], max_new_tokens=NEW)
        given = {field.name: getattr(video, field.name) for field in fields(video)}
        given |= {"cache": read.cache, "records": tuple(read.records), "text": text}
        return FromDecode(**given)

    patch.setattr(Ended, "after", after)


def the_row_before(patch: Patch) -> None:
    def at_the_stage(video: Ended, length: int):
        segment = _at_the_stage(video, length)
        behind = segment.length - segment.span.stop
        return replace(segment, query_from_end=min(1, behind - 1))

    patch.setattr(Ended, "_at_the_stage", at_the_stage)


def normed_rows(patch: Patch) -> None:
    def keep(stage: UniformStage, block) -> None:
        rows = F.rms_norm(block.hidden, block.hidden.shape[-1:])
        stage.dropped.append(*stage.module.keys_values(rows))

    patch.setattr(UniformStage, "_keep", keep)


def one_length(patch: Patch) -> None:
    def join(cache: HybridCache, rows) -> None:
        _join(cache, rows)
        for state in cache.layers:
            if isinstance(state, AttentionState):
                state.even = True
                state.lengths.fill_(state.longest)

    patch.setattr(HybridCache, "join", join)


def one_generator(patch: Patch) -> None:
    def sample(logits, sampling, generators=()):
        return _sample(logits, sampling, [*generators[:1]] * len(logits))

    patch.setattr(generate, "sample", sample)


MISTAKES: dict[Callable[[Patch], None], Callable[[], None]] = {
    shared_states: test_ended.test_no_question_changes_the_video,
    counts_of_those_left: one_go("shipped"),
    forgotten_stage: one_go("two uniform"),
    nothing_held_back: lambda: test_prefix.test_a_length_that_nobody_announced_changes_no_bit(16),
    source_without_the_front: one_go("asking alone"),
    decode_state_continued: test_ended.test_what_the_turn_before_left_is_the_whole_conversation,
    the_row_before: one_go("asking alone"),
    normed_rows: one_go("uniform alone"),
    one_length: test_ended.test_several_questions_are_read_as_each_alone,
    one_generator: test_ended.test_a_drawn_answer_does_not_depend_on_its_neighbours,
}


@pytest.mark.parametrize("plant", MISTAKES, ids=lambda plant: plant.__name__)
def test_a_planted_mistake_is_caught(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    law = MISTAKES[plant]
    law()
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        law()
