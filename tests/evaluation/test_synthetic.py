"""Scenes have needles at the given depths, one true answer, and a distractor chain."""

from __future__ import annotations

import pytest
import torch

from tests.evaluation.common import TASKS, haystack, random_model
from timeviper_fast.evaluation.synthetic import (
    ABSENT_TASKS,
    NEEDLE_TASKS,
    SyntheticHaystack,
    draw_scene,
)
from timeviper_fast.evaluation.trial import frame_at
from timeviper_fast.synthetic.pool import PoolSize
from timeviper_fast.synthetic.wordings import HELD_OUT_WORDINGS

DEPTHS = {"sign": 0.0, "colour": 0.5, "chain": 1.0, "count": 0.3}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed, frames, DEPTHS) for seed in range(40) for frames in (32, 1000)]


def chains(scene):
    """{first letter: the chain that starts at it}"""
    step = {n.text[0]: n.text[1] for n in scene.needles.values() if n.kind == "link"}

    def walk(way):
        return walk(way + step[way[-1]]) if way[-1] in step and len(way) < 30 else way

    return {letter: walk(letter) for letter in step}


def test_each_task_is_asked_once_at_its_depth(scenes):
    for scene in scenes:
        assert sorted(q.task for q in scene.questions) == sorted(DEPTHS)
        for question in scene.questions:
            place = frame_at(DEPTHS[question.task], scene.frames)
            assert place in question.needed
            shown = scene.needles[place]
            assert {
                "sign": shown.text,
                "colour": f"{shown.kind} {shown.colour}",
                "chain": question.answer[: len(shown.text)],
                "count": f"{shown.kind} {len(question.needed)}",
            }[question.task] == (
                question.answer[:2] if question.task == "chain" else question.answer
            )
            assert question.task != "chain" or shown.text == question.answer[:2]


def test_needles_lie_within_the_video_and_no_two_in_one_frame(scenes):
    for scene in scenes:
        assert all(0 <= frame < scene.frames for frame in scene.needles)
        needed = [frame for question in scene.questions for frame in question.needed]
        assert len(set(needed)) == len(needed)


def test_a_chain_has_one_answer_and_a_rival_of_its_length(scenes):
    hops = set()
    for scene in scenes:
        ways = chains(scene)
        asked = next(q for q in scene.questions if q.task == "chain")
        assert ways[asked.answer[0]] == asked.answer
        links = [n.text[0] for n in scene.needles.values() if n.kind == "link"]
        assert len(set(links)) == len(links)
        rivals = [way for way in ways.values() if not set(way) & set(asked.answer)]
        rivals = [way for way in ways.values() if way[-1].isdigit() and way[-1] != asked.answer[-1]]
        assert max(map(len, rivals)) > asked.hops
        hops.add(asked.hops)
    assert hops == {1, 2, 3, 4}


def test_scenes_are_functions_of_their_seed():
    assert draw_scene(3, 100, DEPTHS) == draw_scene(3, 100, DEPTHS)
    assert draw_scene(3, 100, DEPTHS) != draw_scene(4, 100, DEPTHS)


@pytest.mark.parametrize("shown", [{}, {"colour": 0.2, "chain": 0.5}])
def test_absent_things_are_not_in_the_scene(shown):
    for seed in range(30):
        scene = draw_scene(seed, 64, {**shown, **dict.fromkeys(ABSENT_TASKS, 0.0)})
        asked = {question.task: question for question in scene.questions}
        assert set(asked) == {*shown, *ABSENT_TASKS}
        kinds = {needle.kind for needle in scene.needles.values()}
        firsts = {needle.text[0] for needle in scene.needles.values() if needle.kind == "link"}
        assert asked["no-sign"].answer == "none"
        assert "sign" not in kinds
        for task, end in (("no-colour", "none"), ("no-count", "0")):
            shape, said = asked[task].answer.split()
            assert shape not in kinds
            assert shape in asked[task].text
            assert said == end
        letter, said = asked["no-chain"].answer.split()
        assert letter not in firsts
        assert said == "none"
        assert all(asked[task].needed == () for task in ABSENT_TASKS)


def test_when_and_order_are_answered_from_the_places_of_the_needles():
    answers = set()
    for seed in range(40):
        scene = draw_scene(seed, 200, {"when": 0.47, "order": 0.6})
        asked = {question.task: question for question in scene.questions}
        thing, tenth = asked["when"].answer.split()
        assert scene.needles[93].kind == thing
        assert tenth == "40%"
        first, second, said = asked["order"].answer.split()
        place = {scene.needles[i].kind: i for i in asked["order"].needed}
        assert said == ("yes" if place[first] < place[second] else "no")
        assert 119 in asked["order"].needed
        answers.add(said)
    assert answers == {"yes", "no"}


def test_held_out_wordings():
    starts = {text.split("{")[0] for texts in HELD_OUT_WORDINGS.values() for text in texts}
    for seed in range(5):
        for question in draw_scene(seed, 64, DEPTHS, held_out=True).questions:
            assert any(map(question.text.startswith, starts))


def test_a_video_holds_its_needles_and_blind_it_does_not():
    model = random_model()
    made = haystack(model)
    trial = made.trial(100, 1, 2, (0.0, 0.5, 1.0))
    seen, blind = made.visual(trial), made.visual(trial, blind=True)
    assert seen.shape == (100, 4, 128)
    changed = {i for i in range(100) if not torch.equal(seen[i], blind[i])}
    assert changed == trial.needed
    pool = made._pool
    for frame, needle in trial.needles.items():
        first, _ = pool.places[needle]
        shown = model.projector.project(pool.features[first : first + 1])[0]
        torch.testing.assert_close(seen[frame], shown.detach())
    assert len(torch.unique(blind.flatten(1), dim=0)) == 100
    assert made.trial(100, 1, 2, (0.0, 0.5, 1.0)) == trial
    assert made.trial(100, 1, 3, (0.0, 0.5, 1.0)).needles != trial.needles


def test_a_rendered_pool_says_what_it_is(monkeypatch):
    from timeviper_fast.synthetic import pool as pool_module

    needles = pool_module.every_needle()[:3]
    monkeypatch.setattr(pool_module, "every_needle", lambda: needles)
    calls = []
    made = SyntheticHaystack.render(
        random_model(),
        TASKS,
        seed=5,
        size=PoolSize(plain=260, signs=1),
        progress=lambda *call: calls.append(call),
    )
    assert calls == [("frames", 256, 263), ("frames", 263, 263)]
    assert made.facts["pool"]["plain"] == made.facts["alike"]["frames"] == 260
    assert made.foot.startswith("study world, seed 5; pool of 260 frames")


def test_what_cannot_be_asked_is_refused():
    model = random_model()
    with pytest.raises(ValueError, match="frames must be at least 32, got 8"):
        draw_scene(0, 8, DEPTHS)
    for tasks in ((), ("sign", "sign"), ("where",)):
        with pytest.raises(ValueError, match=f"tasks must be different ones of {NEEDLE_TASKS[0]}"):
            haystack(model, tasks)
    for tasks in (
        ("sign", "no-sign"),
        ("colour", "count", "no-colour", "no-count"),
        ("sign", "colour", "count", "order"),
    ):
        with pytest.raises(ValueError, match="tasks must ask about no more than a scene has"):
            haystack(model, tasks)
    with pytest.raises(ValueError, match=r"model must see pictures of 48 pixels, .*got 98"):
        SyntheticHaystack.render(random_model("tiny"), TASKS, seed=0)
