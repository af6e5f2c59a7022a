"""Prefill, decode and sampling: laws, batches, stop ids, and every sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.goldens import golden, manifest
from tests.inference.common import CONFIG, STAGES, build, prompt
from tests.model.common import flash_config, flash_stages, flash_weights
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.generate import decode, penalise, prefill, sample
from timeviper_fast.inference.request import Sampling
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.cache import HybridCache
from timeviper_fast.model.nemotron_h import HybridBackbone

MODEL = build()


@settings(max_examples=15)
@given(
    vision=st.integers(0, 60),
    before=st.integers(0, 4),
    after=st.integers(1, 9),
    chunk=st.integers(1, 80),
)
def test_chunks_of_any_size_equal_one_pass(vision, before, after, chunk):
    embeddings = prompt(before + vision + after)
    segment = Segment(before + vision + after, VisualSpan(before, vision))
    whole = prefill(MODEL, embeddings, segment, max_new_tokens=3)
    parts = prefill(MODEL, embeddings, segment, max_new_tokens=3, chunk=chunk)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-4, atol=1e-4)
    for a, b in zip(whole.records, parts.records):
        assert torch.equal(a.kept, b.kept)
    first, second = (
        torch.cat(list(decode(MODEL, read, max_new_tokens=3))) for read in (whole, parts)
    )
    assert torch.equal(first, second)


@settings(max_examples=10)
@given(split=st.integers(1, 29))
def test_prefill_then_more_text_equals_one_prefill(split):
    embeddings = prompt(30, seed=2)
    truth = prefill(MODEL, embeddings, max_new_tokens=1)
    part = prefill(MODEL, embeddings[:, :split], max_new_tokens=30)
    with torch.no_grad():
        hidden, _ = MODEL(embeddings[:, split:], cache=part.cache)
        logits = MODEL.logits(hidden[:, -1:])[:, 0]
    torch.testing.assert_close(logits, truth.logits, rtol=1e-4, atol=1e-4)


def test_token_by_token_equals_prefill():
    embeddings = prompt(12, seed=3)
    read = prefill(MODEL, embeddings[:, :1], max_new_tokens=12)
    with torch.no_grad():
        for i in range(1, 12):
            hidden, _ = MODEL(embeddings[:, i : i + 1], cache=read.cache)
    truth = prefill(MODEL, embeddings, max_new_tokens=1)
    logits = MODEL.logits(hidden)[:, 0]
    torch.testing.assert_close(logits, truth.logits, rtol=1e-4, atol=1e-4)


def test_a_dt_clamp_holds_in_prefill_and_decode():
    model = build((), replace(CONFIG, time_step_limit=(0.01, 0.05)))
    embeddings = prompt(20, seed=4)
    read = prefill(model, embeddings[:, :19], max_new_tokens=1)
    with torch.no_grad():
        hidden, _ = model(embeddings[:, 19:], cache=read.cache)
    truth = prefill(model, embeddings, max_new_tokens=1).logits
    torch.testing.assert_close(model.logits(hidden)[:, 0], truth, rtol=1e-4, atol=1e-4)
    free = prefill(build(()), embeddings, max_new_tokens=1).logits
    assert (free - truth).abs().max() > 1e-2


def test_rows_of_a_batch_choose_their_own_tokens():
    segment = Segment(50, VisualSpan(2, 40))
    embeddings = prompt(50, seed=5, batch=3)
    read = prefill(MODEL, embeddings, segment, max_new_tokens=4)
    tokens = torch.stack(list(decode(MODEL, read, max_new_tokens=4)), dim=1)
    kept = [record.kept for record in read.records][-1]
    assert not torch.equal(kept[0], kept[1])
    for row in range(3):
        alone = prefill(MODEL, embeddings[row : row + 1], segment, max_new_tokens=4)
        assert torch.equal(alone.records[-1].kept[0], kept[row])
        single = torch.stack(list(decode(MODEL, alone, max_new_tokens=4)), dim=1)
        assert torch.equal(single[0], tokens[row])


def test_two_requests_do_not_disturb_each_other():
    a, b = prompt(40, seed=6), prompt(25, seed=7)
    segment = Segment(40, VisualSpan(1, 30))
    alone = [
        torch.cat(list(decode(MODEL, prefill(MODEL, e, s, max_new_tokens=6), max_new_tokens=6)))
        for e, s in ((a, segment), (b, None))
    ]
    one = decode(MODEL, prefill(MODEL, a, segment, max_new_tokens=6), max_new_tokens=6)
    two = decode(MODEL, prefill(MODEL, b, max_new_tokens=6), max_new_tokens=6)
    mixed = list(zip(one, two))
    assert torch.equal(torch.cat([x for x, _ in mixed]), alone[0])
    assert torch.equal(torch.cat([y for _, y in mixed]), alone[1])


def test_alpha_zero_leaves_the_text_bitwise():
    closed, dropping = (
        build(STAGES, seed=3),
        build(tuple(replace(stage, transfer=False) for stage in STAGES), seed=3),
    )
    for module in closed.transv:
        module.alpha.data.zero_()
    own = {k: v for k, v in closed.state_dict().items() if not k.startswith("transv.")}
    dropping.load_state_dict(own)
    segment = Segment(40, VisualSpan(2, 30))
    with torch.no_grad():
        one, _ = closed(prompt(40), (segment,))
        two, _ = dropping(prompt(40), (segment,))
    assert torch.equal(one, two)


def test_a_stage_may_keep_nothing_and_text_alone_may_lack():
    model = build((CompressionStage(2, "uniform", 0.01), CompressionStage(8, "attention", 0.01)))
    segment = Segment(34, VisualSpan(2, 30))
    read = prefill(model, prompt(34), segment, max_new_tokens=2)
    assert [record.tokens_after for record in read.records] == [0, 0]
    assert read.lengths[-1] == 4
    bare = Segment(30, VisualSpan(0, 30))
    read = prefill(build((STAGES[0],)), prompt(30), bare, max_new_tokens=2)
    assert read.logits.isfinite().all()


def test_stop_ids_end_each_row_and_the_rest_goes_on():
    embeddings = prompt(9, seed=8, batch=2)
    free = torch.stack(
        list(decode(MODEL, prefill(MODEL, embeddings, max_new_tokens=6), max_new_tokens=6)), dim=1
    )
    stop = int(free[0, 1])
    assert stop not in free[1, :3].tolist(), "the seed must give rows that differ"
    read = prefill(MODEL, embeddings, max_new_tokens=6)
    tokens = torch.stack(list(decode(MODEL, read, max_new_tokens=6, stop_ids=[stop])), dim=1)
    assert tokens.shape[1] > 2
    assert (tokens[0, 1:] == stop).all()
    n = tokens.shape[1]
    assert torch.equal(tokens[1], free[1, :n])


class TestSampling:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])

    def draws(self, sampling, n=400):
        generator = sampling.generator(torch.device("cpu"))
        many = self.logits.expand(n, -1)
        return sample(many, sampling, [generator] * n)

    def test_greedy_takes_the_first_of_equals(self):
        assert sample(torch.tensor([[1.0, 3.0, 3.0]]), Sampling()).item() == 1

    def test_a_seed_repeats_and_none_does_not(self):
        fixed = Sampling(temperature=1.0, seed=5)
        assert torch.equal(self.draws(fixed), self.draws(fixed))
        free = Sampling(temperature=1.0)
        assert not torch.equal(self.draws(free), self.draws(free))

    def test_frequencies_follow_the_softmax(self):
        counts = torch.bincount(self.draws(Sampling(temperature=2.0, seed=0), 20_000), minlength=4)
        truth = (self.logits[0] / 2).softmax(0)
        torch.testing.assert_close(counts / counts.sum(), truth, rtol=0, atol=0.015)

    def test_the_lowest_temperature_is_greedy(self):
        for temperature in (1e-40, 1e-300):
            assert set(self.draws(Sampling(temperature, seed=0)).tolist()) == {0}

    def test_top_k_and_top_p_cut(self):
        assert set(self.draws(Sampling(1.0, top_k=2, seed=0)).tolist()) == {0, 1}
        # probabilities 0.64, 0.24, 0.09, 0.03: 0.8 needs the first two
        assert set(self.draws(Sampling(1.0, top_p=0.8, seed=0)).tolist()) == {0, 1}
        assert set(self.draws(Sampling(1.0, top_p=1e-6, seed=0)).tolist()) == {0}

    @pytest.mark.parametrize(
        ("kwargs", "words"),
        [
            ({"temperature": -1}, "temperature must be 0 or more, got -1"),
            ({"temperature": float("inf")}, "temperature must be 0 or more, got inf"),
            ({"repetition_penalty": 0}, "repetition_penalty must be above 0, got 0"),
            ({"top_k": -2}, r"top_k must be 0 \(off\) or more, got -2"),
            ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
            ({"temperature": "1"}, "temperature must be 0 or more, got '1'"),
            ({"top_k": 1.5}, r"top_k must be 0 \(off\) or more, got 1.5"),
            ({"top_p": None}, r"top_p must lie in \(0, 1\], got None"),
            ({"seed": "a"}, "seed must be an int of 64 bits, got 'a'"),
            ({"seed": 10**20}, "seed must be an int of 64 bits, got 1000"),
            ({"temperature": True}, "temperature must be 0 or more, got True"),
            ({"top_k": True}, r"top_k must be 0 \(off\) or more, got True"),
            ({"top_p": True}, r"top_p must lie in \(0, 1\], got True"),
            ({"seed": False}, "seed must be an int of 64 bits, got False"),
        ],
    )
    def test_sentences(self, kwargs, words):
        with pytest.raises(ValueError, match=words):
            Sampling(**kwargs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(value, temperature):
    model = build(())
    with torch.no_grad():
        model.lm_head.weight[3] = value
    read = prefill(model.to(torch.float64), prompt(5).double(), max_new_tokens=2)
    words = "logits must be finite, got NaN or infinity in float64; the weights are damaged$"
    with pytest.raises(ValueError, match=words):
        next(decode(model, read, max_new_tokens=2, sampling=Sampling(temperature)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: prefill(MODEL, prompt(5), max_new_tokens=2.5),
            "max_new_tokens must be an integer of 1 or more, got 2.5",
        ),
        (
            lambda: prefill(MODEL, prompt(5), max_new_tokens=True),
            "max_new_tokens must be an integer of 1 or more, got True",
        ),
        (
            lambda: next(
                decode(
                    MODEL,
                    prefill(MODEL, prompt(5), max_new_tokens=1),
                    max_new_tokens=1,
                    sampling={},
                )
            ),
            "sampling must be a Sampling or None, got {}",
        ),
        (
            lambda: prefill(MODEL, prompt(0), max_new_tokens=1),
            "prompt must have a token left at layer 0, got 0",
        ),
        (lambda: MODEL(prompt(5), (Segment(4),)), r"segments must cover the sequence \(5\), got 4"),
        (
            lambda: MODEL(prompt(5), (Segment(2), Segment(3)), HybridCache(CONFIG, [5] * 12)),
            "segments must be one when a cache is given, got 2",
        ),
        (
            lambda: prefill(MODEL, prompt(5), Segment(5, VisualSpan(0, 5)), max_new_tokens=0),
            "max_new_tokens must be an integer of 1 or more, got 0",
        ),
        (
            lambda: prefill(
                build((CompressionStage(2, "uniform", 0.1),)),
                prompt(5),
                Segment(5, VisualSpan(0, 5)),
                max_new_tokens=1,
            ),
            "prompt must have a token left at layer 2, got 0",
        ),
        (lambda: MODEL(prompt(5), chunk=0), "chunk must be a positive number of tokens, got 0"),
        (
            lambda: HybridCache(CONFIG, [5]),
            r"capacities must have one number per layer \(12\), got 1",
        ),
    ],
)
def test_sentences(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_prefill_reports_the_share_of_its_passes():
    """Each pass counts its tokens times its layers: with stages, later layers read fewer tokens."""
    backbone, steps = build(), []
    segment = Segment(100, VisualSpan(10, 60))
    read = prefill(
        backbone,
        prompt(100),
        segment,
        max_new_tokens=1,
        chunk=16,
        progress=lambda *step: steps.append(step),
    )
    names, done, totals = zip(*steps)
    assert set(names) == {"prefill"}
    assert set(totals) == {sum(read.lengths) // len(read.lengths)}
    assert list(done) == sorted(done)
    assert (done[0], done[-1]) == (0, totals[0])
    # chunks of 16 tokens through layers 0 to 7, then 8 to 11
    assert len(steps) == 1 + -(-read.lengths[0] // 16) + -(-read.lengths[8] // 16)


@pytest.mark.parametrize(
    ("run", "penalty"), [("drop", 1.0), ("drop_penalty", 1.1), ("nodrop", 1.0), ("image", 1.0)]
)
def test_answers_of_videochat_flash(run, penalty):
    """Its "greedy" answer is that of the highest logit after the repetition penalty."""
    data, about = golden("vcf_generate"), manifest("vcf_generate")
    stages = flash_stages(about["hico"]) if run.startswith("drop") else ()
    model = HybridBackbone(flash_config(about["config"]["llm"]), stages).eval()
    model.load_state_dict(flash_weights(data))
    kind = "image" if run == "image" else "drop"
    embeddings = data[f"{kind}.inputs_embeds"]
    ids = data["image_input_ids" if run == "image" else "input_ids"][0]
    span = VisualSpan(ids.tolist().index(-200), embeddings.shape[1] - len(ids) + 1)
    segment = Segment(embeddings.shape[1], span)
    read = prefill(model, embeddings, segment, max_new_tokens=8)
    logits: list[torch.Tensor] = []
    sampling = Sampling(repetition_penalty=penalty)
    steps = decode(model, read, max_new_tokens=8, sampling=sampling, on_logits=logits.append)
    tokens = torch.cat(list(steps))
    assert tokens.tolist() == data[f"{run}.generated"][0].tolist()
    torch.testing.assert_close(torch.cat(logits), data[f"{run}.logits"], rtol=0, atol=1e-4)
    said = torch.zeros(8, logits[0].shape[1], dtype=torch.bool)
    for step in range(1, 8):
        said[step:, tokens[step - 1]] = True
    lower = penalise(torch.cat(logits), said, penalty)
    theirs = data[f"{run}.scores_after_processors"]
    torch.testing.assert_close(lower, theirs, rtol=0, atol=1e-4)
    lengths = [state.start + state.longest for state in read.cache.layers[::2]]
    assert lengths == data[f"{run}.kv_lengths_after_decode"].tolist()


def test_a_penalty_counts_each_row_and_never_the_prompt():
    embeddings = prompt(9, batch=2, seed=4)
    read = prefill(MODEL, embeddings, max_new_tokens=6)
    steps = decode(MODEL, read, max_new_tokens=6, sampling=Sampling(repetition_penalty=1e9))
    tokens = torch.stack(list(steps), dim=1)
    assert all(len(set(row)) == 6 for row in tokens.tolist())
    assert torch.equal(tokens[:, 0], read.logits.argmax(-1))
