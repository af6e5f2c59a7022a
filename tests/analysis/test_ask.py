"""A question about a video file: read whole, and of a session, with frames and seconds."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from tests.random_model import square_video, tiny_model
from timeviper_fast.analysis.ask import look_asked, look_at
from timeviper_fast.analysis.look import Looking
from timeviper_fast.config import ProjectorConfig
from timeviper_fast.inference.request import Opening, Question
from timeviper_fast.text.byte_tokenizer import SPECIAL_TOKENS, byte_tokenizer
from timeviper_fast.timeviper import TimeViper

WHAT = Question("What moves?", max_new_tokens=4)
OPENING = Opening(policy="fps:1", chunk=16, frame_batch=5)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "square.mp4"
    return square_video(path, seconds=8, fps=5, height=48, width=48)


@pytest.fixture(scope="module")
def session(model, video):
    return model.open(video, policy="fps:1", chunk=16, frame_batch=5)


@pytest.mark.parametrize("stages", [None, "content:0.5,own"])
def test_a_session_sees_what_a_reading_of_the_whole_prompt_sees(
    model, video, session, stages
) -> None:
    if stages is not None:
        session = model.open(video, policy="fps:1", chunk=16, frame_batch=5, stages=stages)
    opening = replace(OPENING, stages=stages)
    said = session.ask(WHAT.question, max_new_tokens=4)
    looking = Looking(window=4)
    whole = look_at(model, model.tokenizer, video, WHAT, said.token_ids, opening, looking)
    asked = look_asked(session, WHAT, said.token_ids, looking)
    assert asked.token_seconds.equal(whole.token_seconds)
    assert asked.frame_tokens == whole.frame_tokens
    everywhere = {view.layer: view for view in whole.view.layers}
    assert {view.layer for view in asked.view.layers} | {*asked.view.skipped} == {*everywhere}
    for view in asked.view.layers:
        other = everywhere[view.layer]
        assert view.groups.position.equal(other.groups.position)
        assert view.groups.count("answer") == len(said.token_ids)
        assert view.profile.window == 4
        torch.testing.assert_close(view.scores, other.scores, rtol=1e-3, atol=1e-5)
    kept = dict(zip(everywhere, whole.view.kept()))
    assert asked.view.kept().equal(torch.stack([kept[view.layer] for view in asked.view.layers]))
    assert asked.view.depths[-1] == whole.view.depths[-1] == asked.view.layers[-1].layer / 12
    last = asked.view.layers[-1].groups
    seconds = last.seconds(asked.token_seconds)
    assert tuple(seconds[~seconds.isnan()].tolist()) == said.kept_seconds
    frames = last.frames(asked.frame_tokens)
    assert frames[~seconds.isnan()].tolist() == [
        session.footage.seconds.tolist().index(second) for second in said.kept_seconds
    ]
    told = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
    assert [len(layer) for layer in told["layer_seconds"]] == [
        len(view.groups) for view in whole.view.layers
    ]


def test_labels_between_frames_are_text_of_the_prompt(model, video) -> None:
    labelled = copy.copy(model)
    labelled.config = replace(model.config, template="nemotron_vl")
    tokenizer = byte_tokenizer((*SPECIAL_TOKENS, "<img>", "</img>"))
    labelled.tokenizer = tokenizer
    whole = look_at(labelled, tokenizer, video, WHAT, (), OPENING, Looking(window=4))
    first = whole.view.layers[0].groups
    label = tokenizer.encode(
        "</img>\nFrame 2 sampled at 1.00 seconds: <img>", add_special_tokens=False
    )
    starts = first.position[first.vision >= 0][::16]
    assert starts.diff().tolist() == [16 + len(label)] * 7
    said = labelled.ask(video, WHAT.question, policy="fps:1", max_new_tokens=4)
    assert whole.token_seconds[::16].tolist() == list(said.frame_seconds)
    # a session has the places of the rows that are left alone
    session = labelled.open(video, policy="fps:1", chunk=16, frame_batch=5)
    with pytest.raises(ValueError, match="segment must say where its vision tokens lie"):
        look_asked(session, WHAT)


def test_other_stages_are_looked_through(model, video) -> None:
    opening = Opening(policy="fps:1", stages="none")
    seen = look_at(model, model.tokenizer, video, WHAT, opening=opening)
    assert seen.view.kept().all()


def test_a_feature_file_is_seen_as_its_video(model, video, tmp_path) -> None:
    path, opening = tmp_path / "square.features", Opening(frame_batch=5)
    model.save_features(video, path, policy="fps:1", frame_batch=5)
    stored = look_at(model, model.tokenizer, path, WHAT, opening=opening)
    seen = look_at(model, model.tokenizer, video, WHAT, opening=OPENING)
    assert stored.to_dict() == seen.to_dict()
    with pytest.raises(ValueError, match="policy must be left out for a feature file"):
        look_at(model, model.tokenizer, path, WHAT, opening=OPENING)


def test_tokens_of_clips_have_the_seconds_that_a_session_gives_them(model, video) -> None:
    """A token of a clip of four frames shows its middle."""
    clips = TimeViper(
        replace(model.config, projector=ProjectorConfig(num_tokens=16, clip_frames=4))
    )
    clips.load_state_dict(model.state_dict())
    clips.tokenizer = model.tokenizer
    seen = look_at(clips.eval(), clips.tokenizer, video, WHAT, opening=OPENING)
    footage = clips.open(video, policy="fps:1", frame_batch=5).footage
    want = footage.token_seconds(len(seen.token_seconds))
    assert seen.token_seconds.equal(want)
    assert len(want.unique()) == len(footage.seconds) / 4


def test_tiles_are_refused(model, video) -> None:
    with pytest.raises(ValueError, match="look_at: opening must have no tiles"):
        look_at(model, model.tokenizer, video, WHAT, opening=Opening(tiles=True))


def test_a_session_of_other_weights_is_refused(model, video) -> None:
    other = tiny_model(seed=3)
    session = other.open(video, policy="fps:2")
    with torch.no_grad():
        other.backbone.embeddings.weight.mul_(2)
    with pytest.raises(ValueError, match="have the weights with which the video was read"):
        look_asked(session, WHAT)
