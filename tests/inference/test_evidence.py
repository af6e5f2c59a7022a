"""Evidence: its two sums, the frame of every token, the shortest seconds, and a real stage."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.common import build, prompt
from tests.inference.opening import asking, uniform
from timeviper_fast import TimeViper
from timeviper_fast.demo import DemoVideo
from timeviper_fast.inference.ended import Ended
from timeviper_fast.inference.evidence import Evidence, collect_evidence, evidence_of
from timeviper_fast.inference.generate import prefill
from timeviper_fast.layout import Segment, VisualSpan

BEFORE, FRAMES, TOKENS, TEXT = 3, 12, 4, 5
SECONDS = torch.arange(FRAMES) * 2.0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_masses_and_kept_tokens_add_up_and_lie_at_their_frames(data):
    clip = data.draw(st.sampled_from([1, 2, 4]))
    frames = data.draw(st.integers(1, 30))
    filled = -(-frames // clip) * clip
    counts = data.draw(st.lists(st.integers(0, 5), min_size=filled, max_size=filled))
    total = sum(counts)
    places = st.lists(st.integers(0, max(total - 1, 0)), unique=True, max_size=total)
    source, kept = (torch.tensor(sorted(data.draw(places)), dtype=torch.int64) for _ in range(2))
    whole = torch.rand(len(source) + 1).softmax(0)
    seconds = torch.rand(frames).cumsum(0)
    found = evidence_of(whole[1:], source, kept, seconds, counts, layer=3, clip_frames=clip)
    assert found.text_mass == pytest.approx(float(whole[0]), abs=1e-6)
    assert found.vision_mass + found.text_mass == pytest.approx(1, abs=1e-6)
    assert sum(found.kept) == len(kept)
    assert len(found.mass) == len(found.kept) == len(found.seconds) == -(-frames // clip)
    # token by token, in plain Python
    entry = [min(frame, frames - 1) // clip for frame, n in enumerate(counts) for _ in range(n)]
    for i in range(len(found.mass)):
        mine = [float(whole[1 + j]) for j, token in enumerate(source) if entry[token] == i]
        assert found.mass[i] == pytest.approx(sum(mine), abs=1e-6)
        assert found.kept[i] == sum(entry[token] == i for token in kept)
        clip_seconds = seconds[i * clip : (i + 1) * clip].tolist()
        assert found.seconds[i] == clip_seconds[(len(clip_seconds) - 1) // 2]


def test_a_stage_of_a_model_is_told_as_its_softmax_is():
    """Behind a uniform stage, the asking one scores what is left of each frame."""
    stages = (uniform(2, 0.5), asking(8, 0.25))
    model, length = build(stages), BEFORE + FRAMES * TOKENS + TEXT
    segment = Segment(length, VisualSpan(BEFORE, FRAMES * TOKENS))
    embeddings = prompt(length)
    read = prefill(model, embeddings, segment, max_new_tokens=1)
    found = collect_evidence(read.records, SECONDS, [TOKENS] * FRAMES)
    with torch.no_grad():
        passage = model.run(embeddings, (segment,), stop_stage=1)
    hidden, mixer, left = passage.hidden[0], model.layers[8].mixer, FRAMES * TOKENS // 2
    q = mixer.q_proj(hidden[-1]).unflatten(0, (2, 2, 32))
    k = mixer.k_proj(hidden).unflatten(1, (2, 32))
    weights = (torch.einsum("ghd,sgd->ghs", q, k) / 32**0.5).softmax(-1).mean((0, 1)).detach()
    text = torch.cat([weights[:BEFORE], weights[BEFORE + left :]])
    assert found.text_mass == pytest.approx(float(text.sum()), abs=1e-5)
    original = read.records[0].kept[0]
    for frame in range(FRAMES):
        mine = weights[BEFORE : BEFORE + left][original // TOKENS == frame]
        assert found.mass[frame] == pytest.approx(float(mine.sum()), abs=1e-6)
        assert found.kept[frame] == int((read.kept[0] // TOKENS == frame).sum())
    assert sum(found.kept) == FRAMES * TOKENS // 4 == read.stages[-1].after
    assert (found.layer, found.seconds) == (8, tuple(SECONDS.tolist()))


@pytest.mark.parametrize(
    "stages",
    [
        (asking(3, 0.6), uniform(5, 0.5), asking(8, 0.2)),
        (uniform(0, 0.9), asking(8, 0.001)),
        (asking(8, 1.0),),
    ],
)
def test_the_first_stage_by_attention_is_told_and_the_last_layers_are_counted(stages):
    length = BEFORE + FRAMES * TOKENS + TEXT
    segment = Segment(length, VisualSpan(BEFORE, FRAMES * TOKENS))
    read = prefill(build(stages), prompt(length, batch=2), segment, max_new_tokens=1)
    for row in range(2):
        found = collect_evidence(read.records, SECONDS, [TOKENS] * FRAMES, row=row)
        assert found.layer == next(s.layer for s in stages if s.select == "attention")
        assert sum(found.kept) == read.stages[-1].after
        assert 0 < found.vision_mass < 1
        assert found.vision_mass + found.text_mass == pytest.approx(1, abs=1e-6)


def test_there_is_none_without_a_stage_by_attention():
    length = BEFORE + FRAMES * TOKENS + TEXT
    segment = Segment(length, VisualSpan(BEFORE, FRAMES * TOKENS))
    for stages in ((), (uniform(2, 0.5),)):
        read = prefill(build(stages), prompt(length), segment, max_new_tokens=1)
        assert collect_evidence(read.records, SECONDS, [TOKENS] * FRAMES) is None


@pytest.fixture(scope="module")
def trained():
    return TimeViper.from_pretrained("timeviper-fast/tiny")


def test_a_trained_model_looks_at_the_frame_that_is_asked_about(trained):
    """The embedded one, on signs and colours of worlds that its training has not seen."""
    right = {"sign": 0, "colour": 0}
    for seed in range(6):
        video = DemoVideo(seed)
        session = trained.open(torch.from_numpy(video.frames()), policy="uniform:64")
        for question in video.questions:
            if question.task in right:
                found = session.ask(question.text, max_new_tokens=1).evidence
                largest = max(range(64), key=lambda frame: found.mass[frame])
                right[question.task] += (largest,) == question.needed
    assert right == {"sign": 6, "colour": 6}


def test_a_session_reads_its_neutral_question_once(trained, monkeypatch):
    frames = torch.from_numpy(DemoVideo(0).frames())
    session = trained.open(frames, policy="uniform:64")
    said = session.ask("What does the sign say?", max_new_tokens=3)
    control = session.control()
    asked = session.ask("Describe the video.", max_new_tokens=1).evidence
    assert control == asked
    again = session.ask("What does the sign say?", max_new_tokens=3)
    assert (again.token_ids, again.evidence) == (said.token_ids, said.evidence)
    monkeypatch.setattr(Ended, "read", None)
    assert session.control() is control
    assert said.evidence.against(control).control == control.mass


def test_an_answer_has_the_evidence_of_its_question(trained):
    frames = torch.from_numpy(DemoVideo(1).frames())
    session = trained.open(frames, policy="uniform:64")
    questions = ["What does the sign say?", "Describe the video."]
    together = session.ask(questions, max_new_tokens=2)
    for question, one in zip(questions, together):
        assert session.ask(question, max_new_tokens=2).evidence == one.evidence
    assert together[0].evidence != together[1].evidence
    found = together[0].evidence
    assert sum(found.kept) == together[0].stages[-1].after == len(together[0].kept_seconds)
    assert found.seconds == together[0].frame_seconds
    none = trained.open(frames, policy="uniform:64", stages="none")
    assert none.ask("What?", max_new_tokens=1).evidence is none.control() is None


def evidence(mass, seconds=None, **more):
    seconds = tuple(float(s) for s in seconds or range(len(mass)))
    text = max(1 - sum(mass), 0)
    return Evidence(seconds, tuple(mass), (1,) * len(mass), text, 8, **more)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=9), st.sampled_from([0.1, 0.5, 0.9, 1]))
def test_no_shorter_seconds_hold_the_share(weights, share):
    total = sum(weights) or 1
    found = evidence([weight / total / 2 for weight in weights])
    spans = found.spans(share)
    count = sum(end - start for start, end in spans)
    held = sum(w for i, w in enumerate(weights) if any(a <= i < b for a, b in spans))
    assert held >= share * sum(weights) - 1e-6
    fewer = combinations(weights, max(int(count) - 1, 0))
    assert count == 0 or all(sum(part) < share * sum(weights) for part in fewer)
    assert all(a[1] < b[0] for a, b in pairwise(spans))


def test_spans_join_neighbours_and_go_by_mass_per_second():
    found = evidence([0.1, 0.2, 0.3, 0.0, 0.2])
    assert found.spans(0.5) == ((1.0, 3.0),)
    assert found.spans(0.8) == ((1.0, 3.0), (4.0, 5.0))
    assert found.spans(1) == ((0.0, 3.0), (4.0, 5.0))
    # the second frame stands for ten seconds
    assert evidence([0.2, 0.4, 0.1], (0, 1, 11)).spans(0.2) == ((0.0, 1.0),)
    assert evidence([0.0, 0.0]).spans() == ()
    assert evidence([0.3], (7,)).spans() == ((7.0, 7.0),)


def test_a_control_is_compared_by_shares():
    own, other = evidence([0.1, 0.3, 0.0, 0.0]), evidence([0.1, 0.1, 0.0, 0.2])
    found = own.against(other)
    assert own.ratio is None
    assert found.control == other.mass
    assert found.ratio == pytest.approx((0.25 / 0.25, 0.75 / 0.25, 1, 0))
    assert other.against(own).ratio[3] == float("inf")
    with pytest.raises(ValueError, match="control must be of the same 4 frames, got 2 frames"):
        own.against(evidence([0.1, 0.2]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scores": torch.rand(3)}, r"scores and source must have one shape \(n,\)"),
        ({"source": torch.tensor([0, 8])}, r"source must lie in 0 .. 7, got 0 .. 8"),
        # the text in front of the video is no vision
        ({"source": torch.tensor([-1, 2])}, r"source must lie in 0 .. 7, got -1 .. 2"),
        ({"kept": torch.tensor([9])}, r"kept must lie in 0 .. 7, got 9 .. 9"),
        ({"seconds": []}, r"seconds must be of 1 to 2 frames, got 0"),
        ({"seconds": [1.0, 2.0, 3.0]}, r"seconds must be of 1 to 2 frames, got 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, sentence):
    given = {
        "scores": torch.rand(2),
        "source": torch.tensor([1, 2]),
        "kept": torch.tensor([2]),
        "seconds": [0.0, 1.0],
        "counts": [4, 4],
        "layer": 8,
    }
    with pytest.raises(ValueError, match=sentence):
        evidence_of(**given | change)


@pytest.mark.parametrize("share", [0, 1.5, "half"])
def test_a_share_is_one(share):
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        evidence([0.5]).spans(share)
