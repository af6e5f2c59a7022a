"""A blocked view of a model: prompts, sessions and answers, and the model that stays as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.analysis.blocks import AFTER, BEFORE, BOTH, LENGTH, PATTERN, SEGMENT, VISION, model, rows
from tests.inference.one_go import QWEN2, backbone, read
from timeviper_fast.analysis.blocked_layers import GRADES
from timeviper_fast.analysis.blocking import Blocking, blocked_backbone
from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import ArgumentError

STAGES = (CompressionStage(3, "uniform", 0.5), CompressionStage(6, "attention", 0.25))
FRONT, VIDEO, TEXT = rows().split([BEFORE, VISION, AFTER], dim=1)
NEW = 4
ANSWER = torch.tensor([[5, 9, 2, 7]])
LAYERS = len(PATTERN)


def logits_of(backbone, chunk=7, together=True, texts=(TEXT,), front=FRONT, video=VIDEO, each=0):
    """First logits, and those behind each token of a fixed answer, through a session's parts."""
    ended = read(backbone, front, video, chunk=chunk, pushes=each or 5, each=each)
    prefill = ended.read(texts, max_new_tokens=NEW)
    ids = ANSWER.expand(len(texts), -1)
    parts = [ids] if together else ids.split(1, dim=1)
    with torch.no_grad():
        hidden = [backbone(backbone.embeddings(part), cache=prefill.cache)[0] for part in parts]
        return torch.cat([prefill.logits[:, None], backbone.logits(torch.cat(hidden, 1))], 1)


@pytest.mark.parametrize("grade", [None, *GRADES])
@pytest.mark.parametrize("rows_", [("instruction",), ("response",), BOTH])
def test_a_session_is_one_pass_of_everything(rows_, grade):
    """Any chunk; the answer read at once or token by token from the blocked states."""
    view = blocked_backbone(model(), Blocking(rows_, 2, grade))
    text = torch.cat([FRONT, VIDEO, TEXT, view.embeddings(ANSWER)], 1)
    segment = SEGMENT.__class__(LENGTH + NEW, SEGMENT.span, query_from_end=NEW)
    with torch.no_grad():
        want = view.logits(view(text, (segment,))[0][:, LENGTH - 1 :])
    for chunk, together in ((7, True), (1, False), (None, False)):
        torch.testing.assert_close(logits_of(view, chunk, together), want)


@pytest.mark.parametrize("rows_", [("instruction",), ("response",), BOTH])
def test_a_model_with_rotary_positions_is_blocked_alike(rows_):
    """Qwen2: the blocked rows' keys have turned as the others have."""
    plain = backbone("*-*-*-", (), torch.float64, family=QWEN2)
    view = blocked_backbone(plain, Blocking(rows_, 2))
    text = torch.cat([FRONT, VIDEO, TEXT, view.embeddings(ANSWER)], 1)
    segment = SEGMENT.__class__(LENGTH + NEW, SEGMENT.span, query_from_end=NEW)
    with torch.no_grad():
        want = view.logits(view(text, (segment,))[0][:, LENGTH - 1 :])
        plainly = plain.logits(plain(text, (segment,))[0][:, LENGTH - 1 :])
    for chunk, together in ((7, True), (1, False)):
        torch.testing.assert_close(logits_of(view, chunk, together), want)
    assert (want - plainly).abs().max() > 1e-3


@pytest.mark.parametrize("grade", [None, *GRADES])
def test_with_stages_chunks_and_steps_agree(grade):
    view = blocked_backbone(model(STAGES), Blocking(BOTH, 1, grade))
    want = logits_of(view, None)
    for chunk, together in ((7, True), (1, False)):
        torch.testing.assert_close(logits_of(view, chunk, together), want)


@pytest.mark.parametrize("grade", [None, *GRADES])
def test_with_stages_a_pass_without_a_cache_is_a_session(grade):
    """Behind a stage fewer vision tokens stand at other places."""
    view = blocked_backbone(model(STAGES), Blocking(BOTH, 1, grade))
    with torch.no_grad():
        hidden, _ = view(torch.cat([FRONT, VIDEO, TEXT], 1), (SEGMENT,))
        torch.testing.assert_close(view.logits(hidden[:, -1]), logits_of(view)[:, 0])


@pytest.mark.parametrize("grade", [None, *GRADES])
def test_behind_a_content_stage_chunks_steps_and_one_pass_agree(grade):
    content = CompressionStage(0, "content", 1.0, transfer=False, prune=0.5, match="best")
    view = blocked_backbone(model((content, *STAGES)), Blocking(BOTH, 1, grade))
    want = logits_of(view, None, each=4)
    for chunk, together in ((7, True), (1, False)):
        torch.testing.assert_close(logits_of(view, chunk, together, each=4), want)
    with torch.no_grad():
        segment = replace(SEGMENT, frame_tokens=4)
        hidden, _ = view(torch.cat([FRONT, VIDEO, TEXT], 1), (segment,))
        torch.testing.assert_close(view.logits(hidden[:, -1]), want[:, 0])


@pytest.mark.parametrize(("rows_", "told"), [(BOTH, ()), (BOTH[:1], (2,)), (BOTH[1:], (0, 1))])
def test_a_closed_stage_tells_only_rows_that_are_not_blocked(rows_, told):
    """Two rows of the question, and one of the answer."""
    plain = model(STAGES)
    view = blocked_backbone(plain, Blocking(rows_, 0))
    text, dropped = rows(3), rows(6, seed=2)
    stage = next(stage for stage in plain.transv if stage.stage.transfer)
    closed = view.transv[[*plain.transv].index(stage)]
    heads = (-1, stage.head_dim)
    key, value = (proj(dropped).unflatten(-1, heads) for proj in (stage.k_proj, stage.v_proj))
    view.labels.answers = 1
    with torch.no_grad():
        own, seen = stage.read(text, key, value), closed.read(text, key, value)
    for row in range(3):
        assert seen[0, row].equal((own if row in told else text)[0, row])
        assert not own[0, row].equal(text[0, row])


@pytest.mark.parametrize("stages", [(), STAGES])
def test_questions_read_together_are_those_read_alone(stages):
    view = blocked_backbone(model(stages), Blocking(BOTH, 1, "absent"))
    texts = (TEXT, rows(5, seed=3))
    both = logits_of(view, texts=texts, together=False)
    for row, text in enumerate(texts):
        alone = logits_of(view, texts=(text,), together=False)
        torch.testing.assert_close(both[row : row + 1], alone)


def test_without_vision_from_the_first_layer_on_the_video_does_not_matter():
    """Attention, scans and transfer are all blocked: nothing of the video reaches the text."""
    stages = (CompressionStage(0, "uniform", 0.5), CompressionStage(3, "uniform", 0.25))
    other, plain = rows(VISION, seed=5), model(stages)
    view = blocked_backbone(plain, Blocking(BOTH, 0, "absent"))
    assert torch.equal(logits_of(view), logits_of(view, video=other))
    leaky = blocked_backbone(plain, Blocking(BOTH, 0, "absent", transfer=False))
    assert not torch.equal(logits_of(leaky), logits_of(leaky, video=other))
    cut = logits_of(plain.with_stages(()), front=FRONT, video=VIDEO[:, :0])
    torch.testing.assert_close(logits_of(view), cut)


def test_v2r_blocks_answers_only_and_v2i_leaves_them_their_own_view():
    plain = model()
    want = logits_of(plain)
    response = logits_of(blocked_backbone(plain, Blocking(("response",))))
    assert torch.equal(response[:, 0], want[:, 0])
    assert not torch.equal(response[:, 1], want[:, 1])
    instruction = logits_of(blocked_backbone(plain, Blocking(("instruction",))))
    assert not torch.equal(instruction[:, 0], want[:, 0])


def test_behind_the_last_layer_nothing_is_blocked():
    plain = model(STAGES)
    assert torch.equal(logits_of(blocked_backbone(plain, Blocking(BOTH, LAYERS))), logits_of(plain))


@pytest.mark.parametrize("stages", [(), STAGES])
def test_the_model_is_as_before_also_after_an_error(stages):
    """A view shares the weights alone: no attribute of the model or its layers changes."""
    plain = model(stages)
    modules = {name: (type(m), m, set(vars(m))) for name, m in plain.named_modules()}
    want = logits_of(plain)
    view = blocked_backbone(plain, Blocking(BOTH))
    with pytest.raises(ValueError, match="segments must cover"):
        view(TEXT, (SEGMENT,))
    assert not view.labels.decoding
    logits_of(view)
    assert {n: (type(m), m, set(vars(m))) for n, m in plain.named_modules()} == modules
    assert torch.equal(logits_of(plain), want)
    assert {id(p) for p in view.parameters()} == {id(p) for p in plain.parameters()}


@pytest.mark.parametrize("transfer", [True, False])
def test_a_view_takes_other_stages(transfer):
    """Without transfer the stage is a new module, which has to tell the labels what it keeps."""
    stages = (CompressionStage(3, "uniform", 0.25, transfer=transfer),)
    other = blocked_backbone(model(STAGES), Blocking(BOTH, 1, "absent")).with_stages(stages)
    own = blocked_backbone(model(STAGES).with_stages(stages), Blocking(BOTH, 1, "absent"))
    assert torch.equal(logits_of(other), logits_of(own))
    with torch.no_grad():
        one, two = (
            view(torch.cat([FRONT, VIDEO, TEXT], 1), (SEGMENT,))[0] for view in (other, own)
        )
    assert torch.equal(one, two)


def test_bad_arguments_are_named():
    for given, words in (
        ({"rows": ("vision",)}, "rows must be a tuple of instruction and response"),
        ({"from_layer": -1}, "from_layer must be an integer of 0 or more, got -1"),
        ({"grade": "mask"}, "grade must be None or one of edge, edge.conv, absent, got 'mask'"),
        ({"transfer": 1}, "transfer must be True or False, got 1"),
    ):
        with pytest.raises(ArgumentError, match=words):
            Blocking(**given)
    with pytest.raises(ArgumentError, match="from_layer must be at most 9, the layers, got 10"):
        blocked_backbone(model(), Blocking(from_layer=10))
    view = blocked_backbone(model(), Blocking())
    with pytest.raises(ArgumentError, match="model must be one in which nothing is blocked"):
        blocked_backbone(view, Blocking())
    assert Blocking().to_dict() == {
        "rows": ["instruction"], "from_layer": 0, "grade": "edge", "transfer": True,
    }  # fmt: skip
