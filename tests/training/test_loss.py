"""Packed training against upstream: kept tokens, loss and every gradient; and the loss's errors."""

from __future__ import annotations

import pytest
import torch

from tests.goldens import golden, manifest
from tests.tiny import TRANSV, tiny_backbone
from timeviper_fast.config import ProjectorConfig
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.projector import Projector
from timeviper_fast.text.prompt import IGNORE_INDEX
from timeviper_fast.training.loss import packed_forward, packed_loss, training_segment

FRAME_TOKENS = 4


@pytest.fixture
def parts():
    data = golden("packed_training")
    projector = Projector(ProjectorConfig("tome_mlp", FRAME_TOKENS), 32, 80)
    weights = {n.split(".", 2)[2]: t for n, t in data.items() if n.startswith("projector.")}
    projector.layers.load_state_dict(weights)
    return data, tiny_backbone(TRANSV), projector


def samples():
    """(frames, tokens before the span) of the two packed samples."""
    return [(s["frames"], s["pre"]) for s in manifest("packed_training")["samples"]]


def embed(backbone, projector, data, which):
    """Embeddings, segments and labels of the samples in `which`, one after the other."""
    tokens, labels, ids, segments = [], [], data["input_ids"], []
    frame = id_start = label_start = 0
    fused_labels = data["fused_labels"][0]
    for i, ((frames, pre), text_length) in enumerate(zip(samples(), data["txt_seq_lens"].tolist())):
        text = ids[id_start : id_start + text_length]
        after = text[pre + frames :]
        length = pre + frames * FRAME_TOKENS + len(after)
        if i in which:
            visual = projector(data["features"][frame : frame + frames]).flatten(0, 1)
            embedded = backbone.embeddings(torch.cat([text[:pre], after]))
            tokens += [embedded[:pre], visual, embedded[pre:]]
            own = fused_labels[label_start : label_start + length]
            labels.append(own)
            segments.append(training_segment(own, VisualSpan(pre, frames * FRAME_TOKENS)))
        frame, id_start, label_start = frame + frames, id_start + text_length, label_start + length
    return torch.cat(tokens)[None], tuple(segments), torch.cat(labels)


@pytest.mark.parametrize(
    ("which", "prefix"), [((0, 1), ""), ((0,), "single0."), ((1,), "single1.")]
)
def test_kept_tokens_logits_and_loss(parts, which, prefix):
    data, backbone, projector = parts
    embeddings, segments, labels = embed(backbone, projector, data, which)
    torch.testing.assert_close(embeddings, data[f"{prefix}fused_embeddings"], rtol=0, atol=1e-5)
    hidden, records = backbone(embeddings, segments)
    logits = backbone.logits(hidden)
    torch.testing.assert_close(logits, data[f"{prefix}logits"], rtol=0, atol=2e-4)
    for stage, by_sample in enumerate(records):
        for i, record in enumerate(by_sample):
            kept = data[f"{prefix}stage{stage}.sample{i}.kept"]
            assert torch.equal(record.kept[0].int(), kept)
            if record.scores is not None:
                scores = data[f"{prefix}stage{stage}.sample{i}.scores"]
                torch.testing.assert_close(record.scores[0], scores, rtol=0, atol=2e-4)
    loss = packed_loss(backbone, embeddings, segments, labels)
    torch.testing.assert_close(loss, data[f"{prefix}loss"].reshape(()), rtol=0, atol=2e-4)


def test_predictions_of_packed_samples_are_those_of_each_alone(parts):
    data, backbone, projector = parts
    together = packed_forward(backbone, *embed(backbone, projector, data, (0, 1)))
    alone = [packed_forward(backbone, *embed(backbone, projector, data, (i,))) for i in (0, 1)]
    assert together.samples.tolist() == [i for i in (0, 1) for _ in alone[i].targets]
    assert torch.equal(together.targets, torch.cat([one.targets for one in alone]))
    logits = torch.cat([one.logits for one in alone])
    torch.testing.assert_close(together.logits, logits, rtol=0, atol=2e-4)
    truth = -logits.log_softmax(-1)[range(len(logits)), together.targets].mean()
    torch.testing.assert_close(together.loss, truth, rtol=0, atol=2e-4)
    for stage, (first, second) in enumerate(together.records):
        for one, record in zip(alone, (first, second)):
            assert torch.equal(one.records[stage][0].kept, record.kept)


def test_gradients(parts):
    data, backbone, projector = parts
    embeddings, segments, labels = embed(backbone, projector, data, (0, 1))
    embeddings.retain_grad()
    packed_loss(backbone, embeddings, segments, labels).backward()
    names = {name: p.grad for name, p in backbone.named_parameters()}
    names |= {f"projector.{n}": p.grad for n, p in projector.layers.named_parameters()}
    names["fused_embeddings"] = embeddings.grad
    names["alpha"] = torch.stack([names.pop(f"transv.{i}.alpha") for i in range(2)])
    checked = 0
    for name, truth in data.items():
        if not name.startswith("grad."):
            continue
        ours = name.removeprefix("grad.").removeprefix("llm_backbone.llm.")
        ours = ours.removeprefix("backbone.").replace("merge_modules.", "transv.")
        got = names[ours.replace("projector.projector.", "projector.")]
        error = (got - truth).norm() / truth.norm()
        assert error < 1e-3, (name, float(error))
        checked += 1
    assert checked == sum(name.startswith("grad.") for name in data) > 20


def test_the_query_is_the_token_before_the_last_answer():
    labels = torch.tensor([IGNORE_INDEX, IGNORE_INDEX, 5, 6, IGNORE_INDEX, IGNORE_INDEX, 7, 8, 9])
    segment = training_segment(labels, VisualSpan(0, 1))
    assert len(labels) - 1 - segment.query_from_end == 5
    assert training_segment(labels[:2], VisualSpan(0, 1)).query_from_end == 0


def test_what_stands_behind_the_query_changes_no_selection(parts):
    data, backbone, projector = parts
    embeddings, segments, _ = embed(backbone, projector, data, (0,))
    answer = segments[0].query_from_end
    assert answer > 0
    other = embeddings.clone()
    other[:, -answer:] = 3 * torch.randn(1, answer, embeddings.shape[-1])
    for ours, theirs in zip(backbone(embeddings, segments)[1], backbone(other, segments)[1]):
        assert torch.equal(ours[0].kept, theirs[0].kept)
        if ours[0].scores is not None:
            torch.testing.assert_close(ours[0].scores, theirs[0].scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([IGNORE_INDEX] * 6, r"labels must supervise at least one token, got none"),
        ([IGNORE_INDEX] * 5, r"labels must be int64 \(6,\), got torch.int64 \(5,\)"),
        ([-100.0] * 6, r"labels must be int64 \(6,\), got torch.float32 \(6,\)"),
        ([IGNORE_INDEX] * 5 + [10**6], "labels must be -100 or below .*, got 1000000"),
        ([IGNORE_INDEX] * 5 + [-5], "labels must be -100 or below .*, got -5"),
        (
            [IGNORE_INDEX, IGNORE_INDEX, 3, IGNORE_INDEX, IGNORE_INDEX, 3],
            r"labels must be -100 at vision .* token 2",
        ),
        (
            [3, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 3],
            r"labels must be -100 at vision .* token 0",
        ),
    ],
)
def test_bad_labels(labels, words):
    backbone = tiny_backbone(())
    segment = Segment(6, VisualSpan(1, 3))
    with pytest.raises(ValueError, match=words):
        packed_loss(backbone, torch.randn(1, 6, 80), (segment,), torch.tensor(labels))


def test_a_batch_is_refused():
    segment, labels = Segment(6, VisualSpan(1, 3)), torch.tensor([IGNORE_INDEX] * 5 + [3])
    with pytest.raises(ValueError, match="embeddings must be of batch 1, got 2"):
        packed_loss(tiny_backbone(()), torch.randn(2, 6, 80), (segment,), labels)
