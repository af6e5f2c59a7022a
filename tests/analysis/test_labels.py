"""Labels of a pass, and the marks that go where a cache's states go."""

from __future__ import annotations

import pytest
import torch

from tests.analysis.blocks import SEGMENT, model, rows
from timeviper_fast.analysis.blocking import Blocking, blocked_backbone
from timeviper_fast.analysis.labels import Labels, Mark, MarkedCache, marks_of
from timeviper_fast.errors import ArgumentError
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.cache import HybridCache


def test_chunks_of_a_pass_get_their_part_of_the_labels():
    labels = Labels(("instruction",))
    with labels.reading(36, (SEGMENT,), None):
        for _ in range(2):
            for start in range(0, 36, 12):
                piece = labels.piece(12)
                want = [3 <= i < 27 for i in range(start, start + 12)]
                assert piece.vision.tolist() == want
                assert piece.blocked.tolist() == [not one for one in want]
                labels.passed(12)


def test_an_answer_s_rows_are_not_the_prompt_s():
    segment = Segment(10, VisualSpan(2, 4), query_from_end=3)
    for kind, want in (("instruction", [0, 1, 6]), ("response", [7, 8, 9])):
        labels = Labels((kind,))
        with labels.reading(10, (segment,), None):
            assert labels.piece(10).blocked.nonzero()[:, 0].tolist() == want


def test_packed_samples_are_refused():
    labels = Labels(("instruction",))
    with (
        pytest.raises(NotImplementedError, match="segments must be one sample, got 2"),
        labels.reading(20, (Segment(10), Segment(10)), None),
    ):
        pass


def test_a_row_s_mark_has_its_own_columns():
    """Questions of unequal lengths that were joined differ in their columns."""
    columns = torch.tensor([[True, False], [False, True]])
    shared = torch.tensor([[True, True]])
    mark = Mark([shared, columns])
    assert mark.row(1).column.tolist() == [[True, True, False, True]]


def test_second_states_count_as_memory():
    view = blocked_backbone(model(), Blocking(grade="absent"))
    cache = HybridCache(view.config, [99] * 9, dtype=torch.float64)
    with torch.no_grad():
        view.run(rows(), (SEGMENT,), cache=cache)
    twins = [mark.twin.nbytes for mark in cache.marks.values() if mark.twin is not None]
    assert len(twins) == view.config.pattern.count("M")
    assert cache.nbytes == HybridCache.nbytes.fget(cache) + sum(twins)


def test_a_cache_that_another_model_wrote_is_refused():
    """What its blocked scans would hold is not known."""
    plain = model()
    cache = HybridCache(plain.config, [99] * 9, dtype=torch.float64)
    assert marks_of(cache) == {}
    assert isinstance(cache, MarkedCache)
    used = HybridCache(plain.config, [99] * 9, dtype=torch.float64)
    with torch.no_grad():
        plain.run(rows(5), cache=used)
    with pytest.raises(ArgumentError, match="session must be read by the blocked model alone"):
        marks_of(used)
