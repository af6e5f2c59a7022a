"""Changes since the frame before, against recorded masks and rules in plain words; exact ties."""

from __future__ import annotations

import pytest
import torch

from tests.goldens import golden, manifest
from timeviper_fast.config import CompressionStage
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.content import FIRST, changes, most_changed
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.presets import preset

CASES = manifest("evs")["cases"]


def stage(prune: float, match="place") -> CompressionStage:
    return CompressionStage(0, "content", 1.0, transfer=False, prune=prune, match=match)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["case"]))
def test_recorded_masks(case) -> None:
    data, name = golden("evs"), f"case{case['case']}"
    each = case["rows"] * case["cols"]
    frames = data[f"{name}.embeds"].unflatten(0, (case["frames"], each))
    count = stage(case["q"]).kept_count(case["frames"] * each, each)
    assert count == case["kept"]
    stays = most_changed(changes(frames, None, best=False).flatten(), count)
    assert torch.equal(stays, data[f"{name}.mask"].bool())
    assert stays.unflatten(0, (-1, each)).sum(1).tolist() == case["kept_per_frame"]


def test_a_stage_of_a_model_keeps_the_recorded_tokens() -> None:
    """Between text, packed behind another sample, and in a row of a batch."""
    case = CASES[3]
    tokens = golden("evs")["case3.embeds"]
    model = HybridBackbone(preset("tiny").backbone, (stage(case["q"]),))
    width = model.config.hidden_size
    vision = torch.zeros(1, len(tokens), width)
    vision[0, :, : tokens.shape[1]] = tokens
    text = torch.randn(1, 5, width)
    embeddings = torch.cat([text[:, :2], text, vision, text], dim=1)
    segment = Segment(10 + len(tokens), VisualSpan(5, len(tokens)), frame_tokens=12)
    want = golden("evs")["case3.mask"].nonzero()[:, 0]
    _, records = model(embeddings, (Segment(2), segment))
    [record] = [record for record in records[0] if record.tokens_before]
    assert (record.layer, record.tokens_before, record.tokens_after) == (0, 144, 36)
    assert torch.equal(record.kept[0], want)
    both = torch.cat([embeddings, embeddings.flip(1)])[:, 2:]
    _, [[record]] = model(both, (segment,))
    assert torch.equal(record.kept[0], want)
    assert not torch.equal(record.kept[1], want)


def test_the_best_match_is_found_wherever_it_lies() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(4, 6, 8, generator=generator)
    moved = torch.stack([frames[0, torch.randperm(6, generator=generator)] for _ in range(4)])
    found = changes(moved, None, best=True)
    assert (found[0] == FIRST).all()
    torch.testing.assert_close(found[1:], torch.zeros(3, 6), rtol=0, atol=1e-6)
    assert changes(moved, None, best=False)[1:].max() > 0.5
    unit = frames.double() / frames.double().norm(dim=-1, keepdim=True)
    want = 1 - torch.einsum("tid,tjd->tij", unit[1:], unit[:-1]).amax(-1)
    torch.testing.assert_close(changes(frames, None, best=True)[1:].double(), want)


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 40])
def test_batches_of_frames_change_no_bit(best: bool, batch: int) -> None:
    frames = torch.randn(40, 5, 33, generator=torch.Generator().manual_seed(1))
    parts, before = [], None
    for start in range(0, 40, batch):
        parts.append(changes(frames[start : start + batch], before, best))
        before = frames[min(start + batch, 40) - 1]
    assert torch.equal(torch.cat(parts), changes(frames, None, best))


def test_bfloat16_is_compared_in_float32() -> None:
    frames = torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert torch.equal(changes(frames, None, best=False), changes(frames.float(), None, best=False))


def test_a_token_without_numbers_stays() -> None:
    frames = torch.ones(3, 2, 4)
    frames[2, 1, 0] = float("nan")
    assert changes(frames, None, best=False)[2].tolist() == [0.0, FIRST]


@pytest.mark.parametrize("count", range(8))
def test_of_equal_scores_the_earlier_stay(count: int) -> None:
    scores = torch.tensor([1.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0])
    best = scores.argsort(descending=True, stable=True)[:count].sort().values
    assert torch.equal(most_changed(scores, count).nonzero()[:, 0], best)
    shuffled = torch.tensor([4, 1, 6, 0, 2, 5, 3])
    stays = most_changed(scores[shuffled], count, shuffled)
    assert torch.equal(shuffled[stays].sort().values, best)


def test_a_stage_needs_to_know_the_frames() -> None:
    model = HybridBackbone(preset("tiny").backbone, (stage(0.5),))
    hidden = torch.randn(1, 14, model.config.hidden_size)
    words = "frame_tokens must be known for a content stage: all frames .* got 0"
    with pytest.raises(ValueError, match=words):
        model(hidden, (Segment(14, VisualSpan(1, 12)),))
