"""A content stage in front of the LLM, on every way from a video to an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.inference.one_go import NEW, QWEN2, TINY, agree, backbone, one_go, same_bits, words
from tests.nemotron_vl_directory import hub_directory
from tests.random_model import tiny_model
from timeviper_fast import TimeViper
from timeviper_fast.config import CompressionStage, ProjectorConfig
from timeviper_fast.inference.ended import Ended
from timeviper_fast.inference.plan import plan
from timeviper_fast.inference.prefix import Prefix
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.content import changes, most_changed
from timeviper_fast.model.initialize import init_weights

CONTENT = CompressionStage(0, "content", 1.0, transfer=False, prune=0.6, match="best")
BEHIND = {
    "alone": (),
    "uniform": (CompressionStage(2, "uniform", 0.5, transfer=False),),
    "transfer": (CompressionStage(2, "uniform", 0.5), CompressionStage(4, "attention", 0.2)),
    "attention": (CompressionStage(4, "attention", 0.3, transfer=False, score="normed"),),
}
FRAMES = torch.randint(0, 255, (23, 48, 48, 3), dtype=torch.uint8)
# half of them shows what the one before shows, so that content decides
FRAMES[1::2] = FRAMES[:-1:2]
OPTIONS = {"chunk": 64, "frame_batch": 4}


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize(("pattern", "family"), [("MM*-*-M", TINY), ("*-*-*-", QWEN2)])
@pytest.mark.parametrize(("chunk", "push"), [(None, 12), (7, 1), (32, 5)])
def test_a_video_in_parts_is_that_in_one_go(name, pattern, family, chunk, push) -> None:
    model = backbone(pattern, (CONTENT, *BEHIND[name]), family=family)
    front, video, text = words(3, 1), words(12 * 6, 2), words(5, 3)
    span = VisualSpan(3, 72)
    whole = torch.cat([front, video, text], 1)
    want = one_go(model, whole, Segment(80, span, frame_tokens=6))
    ended = []
    for batch in (push, 12):
        prefix = Prefix(model, chunk=chunk, expected=Segment(75, span, frame_tokens=6))
        prefix.push(front, vision=False)
        for part in video.split(6 * batch, dim=1):
            prefix.push(part, vision=True)
        prefix.finish()
        ended.append(Ended.of(prefix))
    agree(model, ended[0].read([text], max_new_tokens=NEW), want)
    same_bits(*ended, model)
    first = want.records[0]
    scores = changes(video[0].unflatten(0, (12, 6)), None, best=True).flatten()
    assert torch.equal(first.kept[0], most_changed(scores, int(72 * 0.4)).nonzero()[:, 0])


def test_videos_side_by_side_are_refused() -> None:
    model = backbone("MM*-", (CONTENT,))
    with pytest.raises(ValueError, match=r"batch must be 1 with a content stage, .* got 2"):
        Prefix(model, chunk=8, batch=2, expected=Segment(6, VisualSpan(0, 6), frame_tokens=3))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


SCHEDULE = "content:0.5,uniform:2:0.5,attention:8:0.25:normed"


def asked(where, **options):
    answer = where.ask("What moves?", max_new_tokens=4, **options)
    return replace(answer, stops=(), notes=())


def test_a_session_a_file_of_it_and_features_answer_alike(model, tmp_path) -> None:
    session = model.open(FRAMES, policy="fps:1", stages=SCHEDULE, **OPTIONS)
    answer = asked(session)
    each = model.config.tokens_per_frame
    counts = [(s.layer, s.before, s.after) for s in answer.stages]
    left = int(23 * each * 0.5)
    assert counts == [
        (0, 23 * each, left),
        (2, left, left // 2),
        (8, left // 2, int(left * 0.25)),
    ]
    assert sum(answer.evidence.kept) == counts[-1][2]
    # a repetition brings nothing new, so the first of two equal frames is what stays
    assert set(answer.kept_seconds) <= {float(2 * i) for i in range(12)}
    session.save(tmp_path / "session")
    assert asked(model.load_session(tmp_path / "session")) == answer
    model.save_features(FRAMES, tmp_path / "features", policy="fps:1", frame_batch=4)
    features = model.open(tmp_path / "features", stages=SCHEDULE, **OPTIONS)
    assert asked(features) == answer
    other = model.open(FRAMES, policy="fps:1", stages=SCHEDULE, chunk=64, frame_batch=9)
    assert asked(other).token_ids == answer.token_ids
    bare = asked(model.open(FRAMES, policy="fps:1", stages="none", **OPTIONS))
    none = asked(model.open(FRAMES, policy="fps:1", stages="content:0", **OPTIONS))
    assert none.token_ids == bare.token_ids
    one = asked(model.open(FRAMES[:1], policy="fps:1", stages="content:0.9", **OPTIONS))
    assert one.stages[0].before == one.stages[0].after


def test_tensors_are_a_video_too(model) -> None:
    visual = model.encode(torch.randn(6, 3, *(model.config.vision.image_size,) * 2))
    ids = torch.tensor([[5, 6]])
    stages = (CONTENT,)
    viewed = model.with_stages(stages)
    found = viewed.generate(ids, visual, ids, max_new_tokens=2)
    scores = changes(visual, None, best=True).flatten()
    kept = most_changed(scores, CONTENT.kept_count(len(scores), visual.shape[1]))
    assert torch.equal(found.kept[0], kept.nonzero()[:, 0])


def test_clips_are_compared_as_a_whole(model) -> None:
    torch.manual_seed(0)
    projector = ProjectorConfig("tome_mlp", 4, clip_frames=2, merge_heads=4)
    config = replace(model.config, projector=projector, stages=(CONTENT,))
    clips = TimeViper(config, model.tokenizer).eval()
    init_weights(clips.backbone, seed=0)
    visual = clips.encode(torch.randn(6, 3, *(model.config.vision.image_size,) * 2))
    _, segment = clips.embed(torch.tensor([[5]]), visual, torch.tensor([[5]]))
    assert segment.frame_tokens == clips.config.frame_tokens(6) == 8
    answer = asked(clips.open(FRAMES, policy="uniform:6", **OPTIONS))
    assert (answer.stages[0].before, answer.stages[0].after) == (24, int(24 * 0.4))


def test_a_stream_is_exact_once_its_frames_are_announced(model, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"not select by content in a stream, .*announce the num"):
        model.stream(stages=SCHEDULE, **OPTIONS)
    with pytest.raises(ValueError, match="bounded must be None with a stage that selects by cont"):
        model.stream(stages="content:0.5", even=True, bounded="window:20s", **OPTIONS)
    want = asked(model.open(FRAMES, policy="fps:1", stages=SCHEDULE, **OPTIONS))
    for push in (1, 6):
        stream = model.stream(stages=SCHEDULE, frames=23, **OPTIONS)
        for part in FRAMES[:12].split(push):
            stream.push(part)
        stream.save(tmp_path / "stream", overwrite=True)
        further = model.load_stream(tmp_path / "stream")
        for going in (stream, further):
            for part in FRAMES[12:].split(push):
                going.push(part)
            assert going.exact
            assert asked(going) == want


def test_a_stream_without_an_end_chooses_in_windows(model) -> None:
    """What is pushed together changes nothing, nor does a question in between."""
    said = []
    for push in (1, 5, 23):
        stream = model.stream(stages="content:0.5", even=True, **OPTIONS)
        for part in FRAMES.split(push):
            stream.push(part)
            if push == 5:
                asked(stream)
        answer = asked(stream)
        assert not answer.exact
        assert answer.stages[0].after == int(answer.stages[0].before * 0.5)
        said.append(answer)
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("frames", [7, 19, 23])
def test_uniform_stages_thin_what_windows_leave(model, tmp_path, frames) -> None:
    stream = model.stream(stages="content:0.3," + SCHEDULE.partition(",")[2], even=True, **OPTIONS)
    stream.push(FRAMES[:frames])
    answer = asked(stream)
    left = int(frames * model.config.tokens_per_frame * 0.7)
    counts = [(stage.before, stage.after) for stage in answer.stages]
    assert counts[0][1] == left == counts[1][0]
    assert counts[1][1] == left // 2 == counts[2][0]
    assert counts[2][1] == int(left * 0.25)
    stream.now().save(tmp_path / "session")
    assert asked(model.load_session(tmp_path / "session")) == answer


def test_the_plan_counts_what_stays(model) -> None:
    config = model.with_stages((CONTENT, *model.config.stages)).config
    made, bare = plan(config, 100), plan(model.config, 100)
    each = config.tokens_per_frame
    assert made.tokens[0] - 80 == int(100 * each * 0.4)
    assert bare.tokens[0] - 80 == 100 * each
    assert made.session["kv"] + made.session["rows"] < bare.session["kv"] + bare.session["rows"]


def test_labels_of_frames_stay_where_tokens_go(tmp_path) -> None:
    """A labelled model in the hub's layout: its session, its file and its announced stream."""
    labelled = TimeViper.from_pretrained(hub_directory(tmp_path / "hub"))
    each, prune = labelled.config.frame_tokens(23), labelled.config.stages[0].prune
    assert prune == 0.75
    session = labelled.open(FRAMES, policy="uniform:23", **OPTIONS)
    answer = asked(session)
    kept = labelled.config.stages[0].kept_count(23 * each, each)
    assert [(s.layer, s.before, s.after) for s in answer.stages] == [(0, 23 * each, kept)]
    bare = labelled.open(FRAMES, policy="uniform:23", stages="none", **OPTIONS)
    assert session.ended.segment.text == bare.ended.segment.text > 23
    session.save(tmp_path / "session")
    assert asked(labelled.load_session(tmp_path / "session")) == answer
    stream = labelled.stream(frames=23, **OPTIONS)
    seconds = session.footage.seconds
    for first in range(0, 23, 3):
        stream.push(FRAMES[first : first + 3], seconds[first : first + 3])
    assert stream.exact
    assert asked(stream) == answer
    windows = labelled.stream(even=True, **OPTIONS)
    windows.push(FRAMES, seconds)
    assert asked(windows).stages[0].after == kept
