"""What does not fit the model is refused with the numbers that do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from timeviper_fast.errors import ArgumentError
from timeviper_fast.inference.fit import check_fits
from timeviper_fast.inference.request import Request
from timeviper_fast.presets import preset
from timeviper_fast.text.prompt import Prompt
from timeviper_fast.video.sampling import parse_policy

TINY = preset("tiny")
# 10 tokens of text around the vision tokens
PROMPT = Prompt([1] * 4, [1] * 6, "", [False] * 10)


def check(config, prompt, frames: int, request: Request) -> None:
    policy = request.policy or config.policy
    check_fits(config, prompt, frames, policy, request.max_new_tokens)


def model(window, stages=()):
    backbone = replace(TINY.backbone, max_position_embeddings=window)
    return replace(TINY, backbone=backbone, stages=stages)


@pytest.mark.parametrize(("frames", "new"), [(5, 10), (1, 74), (0, 90)])
def test_what_fits_to_the_last_token_passes(frames, new):
    """Without stages each of the 16 tokens of a frame counts."""
    check(model(100), PROMPT, frames, Request("?", max_new_tokens=new))


@pytest.mark.parametrize(
    ("policy", "frames", "most", "fewer"),
    [
        ("fps:2", 900, 5, "policy=fps:2:max=5"),
        ("fps:1:max=40", 40, 5, "policy=fps:1:max=5"),
        ("uniform:6", 6, 5, "policy=uniform:5"),
        ("upstream", 256, 5, "policy=upstream:max=4:min=4"),
        ("upstream:fps=0.5:min=4", 256, 5, "policy=upstream:fps=0.5:max=4:min=4"),
        ("videochat-flash", 64, 5, "policy=videochat-flash:max=4:min=4"),
    ],
)
def test_too_many_frames(policy, frames, most, fewer):
    request = Request("?", policy=policy, max_new_tokens=10)
    with pytest.raises(ArgumentError) as caught:
        check(model(100), PROMPT, frames, request)
    assert caught.value.argument == "policy"
    said = str(caught.value)
    assert said.startswith("policy must fit the model's window of 100 tokens, got " + policy)
    assert f"with {frames} frames: {10 + 16 * frames} at its attention layers" in said
    assert f"at most {most} frames fit: {fewer}" in said
    # what is proposed is a policy that chooses no more
    chosen = parse_policy(fewer.partition("=")[2]).choose(torch.arange(2000) / 10, 10.0, 200.0)
    assert 0 < len(chosen) <= most
    check(model(100), PROMPT, len(chosen), request)


def test_stages_leave_room_for_more_frames():
    """The first stage, before the first attention layer, keeps half of the vision tokens."""
    with pytest.raises(ArgumentError, match="at most 10 frames fit: policy=fps:1:max=10"):
        check(model(100, TINY.stages), PROMPT, 50, Request("?", max_new_tokens=10))


def test_an_answer_too_long_names_the_longest():
    with pytest.raises(ArgumentError) as caught:
        check(model(100), PROMPT, 2, Request("?", max_new_tokens=99))
    assert str(caught.value) == (
        "max_new_tokens must fit the model's window of 100 tokens, got 99 (42 at its attention "
        "layers (of 42 in the prompt) + 99 new tokens); at most 58 fit: max_new_tokens=58"
    )
    # where either number helps, both are named
    with pytest.raises(ArgumentError, match=r"policy=fps:1:max=1 or max_new_tokens=58$"):
        check(model(100), PROMPT, 2, Request("?", max_new_tokens=70))


def test_a_question_too_long_leaves_nothing_to_name():
    with pytest.raises(ArgumentError, match=r"^prompt and answer must fit .* window of 10 tokens"):
        check(model(10), PROMPT, 2, Request("?", max_new_tokens=70))


def test_a_policy_of_ones_own_has_no_shorter_form():
    @dataclass(frozen=True)
    class Every:
        def choose(self, seconds, fps, duration):
            return torch.arange(len(seconds))

    with pytest.raises(ArgumentError, match=r"at most 5 frames fit$"):
        check(model(100), PROMPT, 8, Request("?", policy=Every(), max_new_tokens=10))
