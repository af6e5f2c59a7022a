"""Prompts of unequal lengths are continued as each would be alone."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast import Sampling

GENERATOR = torch.Generator().manual_seed(3)
VISUAL = torch.randn(12, 16, 128, generator=GENERATOR)


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


FRONTS = [ids(1, 2, 3), ids(1, 2, 3), ids(4, 5)]
ENDS = [ids(6, 7, 8, 9), ids(10), ids(11, 12)]


@pytest.mark.parametrize("visual", [VISUAL, None], ids=["video", "text"])
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.0, seed=5)])
def test_rows_are_continued_as_each_alone(model, visual, sampling):
    options = {"max_new_tokens": 5, "sampling": sampling}
    together = model.generate(FRONTS, visual, ENDS, **options)
    for row, (front, end) in enumerate(zip(FRONTS, ENDS)):
        alone = model.generate(front[None], visual, end[None], **options)
        assert torch.equal(alone.token_ids[0], together.token_ids[row])
        assert torch.equal(alone.kept[0], together.kept[row])


def test_a_row_that_ends_early_repeats_its_last_token(model):
    free = model.generate(FRONTS, VISUAL, ENDS, max_new_tokens=5).token_ids
    stop = int(free[2, 1])
    ended = model.generate(FRONTS, VISUAL, ENDS, max_new_tokens=5, stop_ids=[stop]).token_ids
    assert ended[2].tolist() == [*free[2, :2].tolist(), *[stop] * 3]


def test_labels_between_frames(model):
    labels = [torch.tensor([[20 + i]]).expand(3, 1) for i in range(11)]
    together = model.generate(FRONTS, VISUAL, ENDS, between=labels, max_new_tokens=3)
    one = [label[:1] for label in labels]
    alone = model.generate(FRONTS[0][None], VISUAL, ENDS[0][None], between=one, max_new_tokens=3)
    assert torch.equal(alone.token_ids[0], together.token_ids[0])


def test_mistakes(model):
    with pytest.raises(ValueError, match=r"after must have the batch of before \(3\), got 2"):
        model.generate(FRONTS, VISUAL, ENDS[:2])
    with pytest.raises(
        ValueError, match=r"before must be a tensor .*, or a list of \(n,\), got list"
    ):
        model.generate([[1, 2]], VISUAL, ENDS[:1])
    with pytest.raises(ValueError, match="after must lie in 0"):
        model.generate(FRONTS, VISUAL, [ids(10**6)] * 3)
