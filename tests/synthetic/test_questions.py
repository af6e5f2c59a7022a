"""Every answer is right, by a solver that sees only the scene and the question."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from timeviper_fast.synthetic.questions import DEFAULT_TASKS, TASKS, draw_puzzle
from timeviper_fast.synthetic.wordings import HELD_OUT_WORDINGS, WORDINGS

THINGS = ("star", "ring", "heart", "sign")


def things_of(text):
    """The subjects that the question names, in order."""
    return re.findall("|".join(THINGS), text)


def frames_with(puzzle, kind):
    return sorted(i for i, needle in puzzle.needles.items() if needle.kind == kind)


def solve(puzzle, question):
    """(answer, frames that show it), from the question's words and the scene alone."""
    where = {thing: frames_with(puzzle, thing) for thing in THINGS}
    named = things_of(question.text)
    if question.task == "sign":
        assert len(where["sign"]) <= 1
        return next((puzzle.needles[i].text for i in where["sign"]), "none"), where["sign"]
    if question.task == "colour":
        frames = where[named[0]]
        assert len(frames) <= 1
        return f"{named[0]} {next((puzzle.needles[i].colour for i in frames), 'none')}", frames
    if question.task == "count":
        return f"{named[0]} {len(where[named[0]])}", where[named[0]]
    if question.task == "when":
        (frame,) = where[named[0]]
        return f"{named[0]} {int(frame / puzzle.frames * 10) * 10}%", [frame]
    if question.task == "order":
        (first,), (second,) = where[named[0]], where[named[1]]
        answer = "yes" if first < second else "no"
        return f"{named[0]} {named[1]} {answer}", sorted([first, second])
    return follow(puzzle, re.search(r"\b[A-Z]\b", question.text).group())


def follow(puzzle, letter):
    links = [(puzzle.needles[i].text, i) for i in frames_with(puzzle, "link")]
    next_of = {text[0]: (text[1], i) for text, i in links}
    assert len(next_of) == len(links), "a letter has two cards"
    way, frames = letter, []
    while way[-1] in next_of:
        following, frame = next_of[way[-1]]
        way += following
        frames.append(frame)
        assert len(frames) <= 4
    return (way, sorted(frames)) if frames else (f"{letter} none", [])


@pytest.mark.parametrize("held_out", [False, True])
def test_answers_are_right(held_out):
    asked = Counter()
    for seed in range(3000):
        frames = 1 + seed % 70
        tasks = [t for t in TASKS if frames > 1 or t != "order"]
        puzzle = draw_puzzle(seed, frames, tasks, turns=1 + seed % 3, held_out=held_out)
        assert all(0 <= i < frames for i in puzzle.needles)
        for question in puzzle.questions:
            answer, needed = solve(puzzle, question)
            assert (question.answer, question.needed) == (answer, tuple(needed)), (seed, question)
            asked[question.task] += 1
    assert set(asked) == set(TASKS)


def test_tasks_are_balanced():
    asked = Counter(draw_puzzle(seed, 64).questions[0].task for seed in range(4000))
    assert set(asked) == set(DEFAULT_TASKS)
    assert max(abs(count - 1000) for count in asked.values()) < 140  # 5 standard deviations


def test_answers_are_balanced():
    answers = {task: Counter() for task in TASKS}
    hops = Counter()
    for seed in range(6000):
        (question,) = draw_puzzle(seed, 200, TASKS).questions
        answers[question.task][question.answer.split()[-1]] += 1
        hops[question.hops] += question.task == "chain"
    for task, values in {"colour": 9, "count": 5, "when": 10, "order": 2}.items():
        counts = answers[task]
        assert len(counts) == values, task
        mean = sum(counts.values()) / values
        assert max(abs(count - mean) for count in counts.values()) < 0.35 * mean + 5, task
    assert len(answers["sign"]) > 220
    chains = [hops[number] for number in (1, 2, 3, 4)]
    assert max(chains) < 1.35 * min(chains)


def test_one_question_in_ten_asks_for_what_is_absent():
    for task in ("sign", "colour", "chain"):
        none = sum(
            draw_puzzle(s, 64, [task]).questions[0].answer.endswith("none") for s in range(2000)
        )
        assert 140 < none < 260, task
        assert not any(
            draw_puzzle(s, 64, [task], absent=0).questions[0].answer.endswith("none")
            for s in range(300)
        )


def test_needles_are_anywhere_and_decoys_have_a_long_tail():
    puzzles = [draw_puzzle(seed, 500, ["sign"]) for seed in range(1500)]
    places = [i / 500 for puzzle in puzzles for i in puzzle.needles]
    tenths = Counter(int(10 * place) for place in places)
    assert max(tenths.values()) < 1.25 * min(tenths.values())
    decoys = sorted(len(p.needles) - len(p.questions[0].needed) for p in puzzles)
    assert decoys[0] >= 2
    assert decoys[750] <= 6
    assert decoys[-15] >= 25


def test_wordings_are_all_used_and_held_out_ones_only_on_request():
    forms = {}
    for held_out in (False, True):
        texts = [draw_puzzle(s, 64, TASKS, held_out=held_out).questions[0] for s in range(1500)]
        forms[held_out] = {
            (q.task, re.sub(r"star|ring|heart|sign|\b[A-Z]\b", "_", q.text)) for q in texts
        }
    assert not forms[False] & forms[True]
    assert len(forms[False]) == sum(map(len, WORDINGS.values()))
    assert len(forms[True]) == sum(map(len, HELD_OUT_WORDINGS.values()))


def test_a_puzzle_is_a_function_of_its_arguments():
    assert draw_puzzle(5, 64, turns=2) == draw_puzzle(5, 64, turns=2)
    assert draw_puzzle(5, 64) != draw_puzzle(6, 64)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 64, ["colour", "smell"]), "draw_puzzle: tasks must be some of sign, colour"),
        ((0, 64, []), "draw_puzzle: tasks must be some of"),
        ((0, 0), "draw_puzzle: frames and turns must be at least 1, got (0, 1)"),
        ((0, 1, ["order"]), "draw_puzzle: frames must be enough for one of order, got 1"),
    ],
)
def test_mistakes_are_told(arguments, sentence):
    with pytest.raises(ValueError) as error:
        draw_puzzle(*arguments)
    assert sentence in str(error.value)
