"""Vision in several runs with text between them, as a label before each frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.goldens import golden, manifest
from tests.model.common import SCHEDULE, random_model, runs_of
from tests.tiny import TINY
from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.inference.generate import decode, prefill
from timeviper_fast.layout import Segment
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.model.stack import Packing

NAME = "interleaved_stages"
CLOSE = {"rtol": 0, "atol": 2e-4}


@pytest.fixture(scope="module")
def recorded():
    return golden(NAME), manifest(NAME)


def recorded_model(recorded) -> HybridBackbone:
    data, document = recorded
    shape = dict(document["config"]["llm_config"])
    pattern = shape.pop("hybrid_override_pattern")
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        del shape[name]
    stages = tuple(
        CompressionStage(s["layer"], s["select"], s["keep"], transfer=False)
        for s in document["stages"]
    )
    model = HybridBackbone(BackboneConfig(pattern=pattern, eos_token_ids=(), **shape), stages)
    names = {k.removeprefix("weights."): v for k, v in data.items() if k.startswith("weights.")}
    model.load_state_dict({name.removeprefix("backbone."): v for name, v in names.items()})
    return model.eval()


def read_recorded(recorded, run, **options):
    """The model, its reading of a recorded prompt, and the prompt's vision tokens."""
    data, document = recorded
    model = recorded_model(recorded)
    ids = data[f"{run}.input_ids"]
    vision = ids == document["config"]["image_token_id"]
    embeddings = model.embeddings(ids.masked_fill(vision, 0)).detach()
    tokens = data["video_embeds"].flatten(0, 1)
    embeddings[vision] = tokens if run == "plain" else tokens[data["evs_mask"].bool()]
    segment = Segment.of_runs(len(ids), runs_of(vision))
    return model, prefill(model, embeddings[None], segment, **options), int(vision.sum())


def check_recorded(recorded, run, model, read, count, steps):
    data, _ = recorded
    kept, scores = torch.arange(count), []
    for stage, record in enumerate(read.records):
        kept = kept[record.kept[0]]
        assert torch.equal(kept, data[f"{run}.stage{stage}.kept"])
        scores += [] if record.scores is None else [record.scores[0]]
    assert len(scores) == 2
    for i, got in enumerate(scores):
        torch.testing.assert_close(got, data[f"{run}.attention{i}.scores"], **CLOSE)
    assert torch.equal(read.kept[0], kept)
    logits: list[torch.Tensor] = []
    out = torch.cat(list(decode(model, read, max_new_tokens=steps, on_logits=logits.append)))
    assert torch.equal(out, data[f"{run}.generated"][:steps])
    torch.testing.assert_close(torch.cat(logits), data[f"{run}.step_logits"][:steps], **CLOSE)


@pytest.mark.parametrize("chunk", [None, 1, 64])
@pytest.mark.parametrize("run", ["plain", "after_evs"])
def test_recorded_stages(recorded, run, chunk):
    read = read_recorded(recorded, run, max_new_tokens=6, chunk=chunk)
    check_recorded(recorded, run, *read, steps=6)


@pytest.mark.parametrize("chunk", [None, 64])
def test_recorded_stages_behind_a_content_stage(recorded, chunk):
    """The whole video is given, and the first stage drops what the recorded mask drops."""
    data, document = recorded
    model = recorded_model(recorded)
    content = CompressionStage(0, "content", 1.0, transfer=False, prune=0.75)
    model = model.with_stages((content, *model.stages))
    ids = data["plain.input_ids"]
    vision = ids == document["config"]["image_token_id"]
    embeddings = model.embeddings(ids.masked_fill(vision, 0)).detach()
    embeddings[vision] = data["video_embeds"].flatten(0, 1)
    each = data["video_embeds"].shape[1]
    segment = Segment.of_runs(len(ids), runs_of(vision), frame_tokens=each)
    read = prefill(model, embeddings[None], segment, max_new_tokens=6, chunk=chunk)
    first, *behind = read.records
    mask = data["evs_mask"].flatten().bool()
    assert torch.equal(first.kept[0], mask.nonzero()[:, 0])
    check_recorded(
        recorded, "after_evs", model, replace(read, records=behind), int(mask.sum()), steps=6
    )


def test_recorded_stages_on_each_backend(recorded, backend):
    read = read_recorded(recorded, "after_evs", max_new_tokens=2)
    check_recorded(recorded, "after_evs", *read, steps=2)


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (-1, TINY.head_dim)).transpose(0, 1)


def attention(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Weights (heads, n, m) of all keys, written out."""
    q, k = heads(q), heads(k)
    k = k.repeat_interleave(len(q) // len(k), 0)
    return (q @ k.transpose(1, 2) / TINY.head_dim**0.5).softmax(-1)


def restated(model, x, vision, asks):
    """The same by lists of positions, one token after the other: (residual stream, kept)."""
    number = torch.full((len(x),), -1)
    number[vision] = torch.arange(int(vision.sum()))
    total, behind = int(vision.sum()), torch.arange(len(x)) > int(vision.nonzero().max())
    stages = {stage.stage.layer: stage for stage in model.transv}
    for i, layer in enumerate(model.layers):
        if stage := stages.get(i):
            at = (number >= 0).nonzero().flatten()
            keep = int(total * stage.stage.keep)
            if stage.stage.select == "uniform":
                chosen = at[[j * (len(at) - 1) // max(keep - 1, 1) for j in range(keep)]]
            else:
                mixer = layer.mixer
                seen = layer.norm(x) if stage.stage.score == "normed" else x
                seen = seen[: len(x) - asks]
                weights = attention(mixer.q_proj(seen[-1:]), mixer.k_proj(seen)).mean(0)[0]
                chosen = at[weights[at].topk(keep).indices]
            stays = number < 0
            stays[chosen] = True
            text = x[behind]
            if stage.stage.transfer:
                gone = x[~stays]
                weights = attention(stage.q_proj(text), stage.k_proj(gone))
                value = heads(stage.v_proj(gone)).repeat_interleave(TINY.num_attention_heads, 0)
                told = (weights @ value).transpose(0, 1).flatten(1)
                x = x.clone()
                x[behind] = text + stage.alpha.tanh() * stage.o_proj(told)
            x, number, behind = x[stays], number[stays], behind[stays]
        x = layer(x[None], Packing((len(x),), None), None)[0]
    return x, number[number >= 0]


@given(
    runs=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=6),
    behind=st.integers(1, 5),
    asks=st.integers(0, 4),
    score=st.sampled_from(["raw", "normed"]),
)
def test_any_runs_equal_a_restatement_by_lists(runs, behind, asks, score):
    mask = [False] * runs[0][0]
    for between, length in runs:
        mask += [False] * between + [True] * length
    vision = torch.tensor(mask + [False] * behind)
    asks = min(asks, behind - 1)
    model = random_model(tuple(replace(stage, score=score) for stage in SCHEDULE))
    for layer in model.layers:
        torch.nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
    x = torch.randn(len(vision), TINY.hidden_size, dtype=torch.float64)
    segment = Segment.of_runs(len(vision), runs_of(vision), query_from_end=asks)
    with torch.no_grad():
        hidden, records = model(x[None], (segment,))
        truth, kept = restated(model, x, vision, asks)
    got = torch.arange(int(vision.sum()))
    for [record] in records:
        got = got[record.kept[0]]
    assert torch.equal(got, kept)
    torch.testing.assert_close(hidden[0], truth, rtol=1e-9, atol=1e-9)
    # text is never dropped
    assert hidden.shape[1] == int((~vision).sum()) + len(kept)


def test_rows_of_a_batch_keep_their_own_tokens():
    vision = torch.tensor([False, True, True, True, False, True, True, True, True, False] * 2)
    segment = Segment.of_runs(20, runs_of(vision))
    model = random_model()
    x = torch.randn(3, 20, TINY.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        together, records = model(x, (segment,))
        for row in range(3):
            alone, own = model(x[row : row + 1], (segment,))
            torch.testing.assert_close(together[row], alone[0], rtol=1e-9, atol=1e-9)
            for [a], [b] in zip(records, own):
                assert torch.equal(a.kept[row], b.kept[0])
    assert len({tuple(record.kept.flatten().tolist()) for [record] in records[1:]}) > 1


def test_packed_samples_see_only_themselves():
    masks = [
        torch.tensor([False, True, True, False, True, True, True, False, False]),
        torch.tensor([False, False, True, True, True, True, False]),  # one run
        torch.tensor([False] * 6),  # no vision
        torch.tensor([True, False] * 5 + [False]),
    ]
    segments = tuple(Segment.of_runs(len(mask), runs_of(mask)) for mask in masks)
    model = random_model()
    x = torch.randn(1, sum(map(len, masks)), TINY.hidden_size, dtype=torch.float64)
    x.requires_grad_()
    hidden, _ = model(x, segments)
    alone = [model(part, (s,))[0] for part, s in zip(x.split(list(map(len, masks)), 1), segments)]
    torch.testing.assert_close(hidden, torch.cat(alone, 1), rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(hidden)
    (packed,) = torch.autograd.grad((hidden * weight).sum(), x, retain_graph=True)
    (apart,) = torch.autograd.grad((torch.cat(alone, 1) * weight).sum(), x)
    torch.testing.assert_close(packed, apart, rtol=1e-8, atol=1e-9)
