"""Needles are inserted where the form says, and a supplied answer counts as its definition says."""

from __future__ import annotations

from dataclasses import replace
from string import ascii_uppercase

import pytest
import torch

from tests.evaluation.common import haystack, random_model
from timeviper_fast.dataset.sample import Sample
from timeviper_fast.evaluation import needle as needle_module
from timeviper_fast.evaluation.forms import FORMS, Form, form_of
from timeviper_fast.evaluation.needle import NeedlePlan, run_needles
from timeviper_fast.evaluation.trial import Probe, Trial
from timeviper_fast.training.packed import PackedModel


class Numbers:
    """Frame i is the number i, or 1000 and the needle's number; the seed moves all frames."""

    def visual(self, trial, blind=False):
        frames = torch.arange(trial.frames) + trial.seed
        for frame, needle in trial.needles.items():
            frames[frame] = 1000 + needle
        return frames[:, None, None].expand(-1, 4, 2)


def shown(form, trial, probe, blind=False):
    """The frames that a form shows, as numbers, and the frames that its probe needs."""
    visual, moved = form.video(Numbers(), trial, probe, blind)
    assert visual.shape[1:] == (4, 2)
    return visual[:, 0, 0].tolist(), moved.needed


ONE = Probe("sign", "What?", "K7", (5,), depth=0.5)
OTHER = Probe("colour", "Which?", "star red", (8,), depth=1.0)
TRIAL = Trial(10, 77, {5: 1, 8: 2, 3: 3}, (ONE, OTHER))


def test_v_niah_inserts_a_needle_into_the_beginning_of_one_haystack():
    form = FORMS["v-niah"]
    assert shown(form, TRIAL, ONE) == ([0, 1, 2, 3, 4, 1001, 5, 6, 7, 8, 9], (5,))
    assert shown(form, TRIAL, OTHER) == ([*range(10), 1002], (10,))
    assert shown(form, TRIAL, OTHER, blind=True) == ([*range(10)], ())
    assert (form.frames[0], form.frames[-1], len(form.frames), form.depths) == (300, 3000, 10, 6)


def test_videochat_flash_repeats_the_needle_and_above_a_length_half_of_the_haystack():
    form = FORMS["videochat-flash"]
    assert (form.frames[0], form.frames[-1], len(form.frames), form.depths) == (1000, 10_000, 10, 6)
    frames, needed = shown(form, TRIAL, ONE)
    assert frames == [0, 1, 2, 3, 4, *[1001] * 4, 5, 6, 7, 8, 9]
    assert needed == (5, 6, 7, 8)
    assert form.doubled == 7500
    small = Form("small", (9,), copies=1, doubled=8)
    assert shown(small, TRIAL, OTHER)[0] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 1002]
    assert shown(small, Trial(8, 0, {5: 1}, (ONE,)), ONE)[0] == [0, 1, 2, 3, 1001, 4, 5, 6, 7]


def test_the_cards_of_a_chain_are_spread_evenly_with_those_that_distract():
    """Cards 1 and 3 are the chain; the sign's card 2 belongs to another question."""
    chain = Probe("chain", "Follow K.", "KM7", (1, 9), depth=0.1, hops=2)
    sign = Probe("sign", "What?", "K7", (4,), depth=0.4)
    trial = Trial(10, 3, {1: 1, 4: 2, 9: 3, 6: 4}, (chain, sign))
    form = Form("small", (10,), copies=2, chains=True)
    frames, needed = shown(form, trial, chain)
    assert frames == [1001, 1001, 0, 1, 2, 3, 4, 1004, 1004, 5, 6, 7, 8, 9, 1003, 1003]
    assert needed == (0, 1, 14, 15)


@pytest.fixture(scope="module")
def model():
    """A random model that says capital letters only, so that what it says can be a true answer.

    The gates of its transfer are closed: in one pass with the answer, an open one adds dropped
    tokens to the answer's tokens too.
    """
    made = random_model()
    letters = made.tokenizer.encode(ascii_uppercase, add_special_tokens=False)
    with torch.no_grad():
        weight = made.backbone.lm_head.weight
        kept = weight[letters].clone()
        weight.zero_()
        weight[letters] = kept
        for stage in made.backbone.transv:
            stage.alpha.zero_()
    return made


@pytest.mark.parametrize("name", FORMS)
def test_a_supplied_answer_is_right_if_each_of_its_tokens_is_the_likeliest(
    model, tmp_path, monkeypatch, name
):
    """By one forward pass with the answer: for the world's answers, and for what the model says."""
    made, form = haystack(model, ("sign", "colour")), FORMS[name]
    plan = NeedlePlan((40,), depths=2, videos=1, max_new_tokens=1, form=name)
    trial = needle_module.Needles(model, model.tokenizer, made, plan)._trial(40, 0)
    said = run_needles(model, model.tokenizer, made, plan, tmp_path / "truth")
    true = [replace(probe, truth=row.answer) for probe, row in zip(trial.probes, said)]
    monkeypatch.setattr(made, "trial", lambda *_: replace(trial, probes=tuple(true)))
    told = run_needles(model, model.tokenizer, made, plan, tmp_path / "said")
    assert [row.right for row in (*said, *told)] == [False, False, True, True]
    for row, probe in zip((*said, *told), (*trial.probes, *true)):
        visual, moved = form.video(made, trial, probe)
        assert len(visual) == 40 + form.copies
        assert row.needed == moved.needed
        assert forced(model, made, form, trial, probe) == row.right


def forced(model, made, form, trial, probe):
    """Whether each token of the answer has the largest logit, in one pass with the answer."""
    with pytest.MonkeyPatch.context() as patch:
        # the features before their projection, which samples hold
        patch.setattr(model.projector, "project", lambda features: features)
        features, _ = form.video(made, trial, probe)
    turns = (
        {"role": "user", "content": probe.prompt},
        {"role": "assistant", "content": probe.truth},
    )
    with torch.no_grad():
        packed = PackedModel(model)([Sample(turns, features=features)]).predicted
    count = len(model.tokenizer.encode(probe.truth, add_special_tokens=False))
    return bool((packed.logits.argmax(-1) == packed.targets)[:count].all())


def test_other_forms_and_tasks_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="form must be one of ours, v-niah, videochat-flash"):
        NeedlePlan(form="theirs")
    assert form_of("ours") is None
    for tasks, form in ((("chain",), "v-niah"), (("count",), "videochat-flash")):
        plan = NeedlePlan((40,), depths=2, form=form)
        with pytest.raises(ValueError, match=f"tasks must need one frame each.*got '{tasks[0]}'"):
            run_needles(model, model.tokenizer, haystack(model, tasks), plan, tmp_path)


def test_a_folder_holds_rows_of_one_form(model, tmp_path):
    made = haystack(model, ("sign",))
    plan = NeedlePlan((40,), depths=2, videos=1, max_new_tokens=1)
    run_needles(model, model.tokenizer, made, plan, tmp_path)
    other = NeedlePlan((40,), depths=2, videos=1, max_new_tokens=1, form="v-niah")
    with pytest.raises(ValueError, match="out must hold rows of the same form"):
        run_needles(model, model.tokenizer, made, other, tmp_path)
