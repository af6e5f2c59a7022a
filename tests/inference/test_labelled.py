"""Frames with labels between them: opened, asked, saved, streamed and forgotten."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from tests.goldens import golden, manifest
from tests.inference.one_go import agree, digest
from tests.nemotron_vl_directory import hub_directory
from timeviper_fast import TimeViper
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.generate import prefill
from timeviper_fast.inference.labelled import Labeller, runs_of
from timeviper_fast.inference.request import Opening, Question, question_prompt
from timeviper_fast.layout import VisualSpan
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.text.byte_tokenizer import SPECIAL_TOKENS, byte_tokenizer

MARKS = byte_tokenizer((*SPECIAL_TOKENS, "<img>", "</img>"))
FRAMES = torch.randint(
    0, 255, (11, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
)
OPTIONS = {"chunk": 64, "frame_batch": 4}
QUESTIONS = ["What moves?", "How many squares are there?", "Why?"]
SCHEDULES = {
    "none": (),
    "uniform": (CompressionStage(2, "uniform", 0.5, transfer=False),),
    "raw": (
        CompressionStage(2, "uniform", 0.5, transfer=False),
        CompressionStage(8, "attention", 0.1, transfer=False),
    ),
    "normed": (
        CompressionStage(3, "attention", 0.4, transfer=False, score="normed"),
        CompressionStage(8, "attention", 0.1, transfer=False, score="normed"),
    ),
    "transfer": (CompressionStage(2, "uniform", 0.5), CompressionStage(8, "attention", 0.1)),
}


def labelled_model(stages=SCHEDULES["raw"], template="nemotron_vl", **changes) -> TimeViper:
    config = replace(preset("tiny"), template=template, stages=stages, **changes)
    model = TimeViper(config, tokenizer=MARKS)
    init_weights(model, seed=2)
    for module in model.backbone.transv:
        if module.stage.transfer:
            torch.nn.init.constant_(module.alpha, 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> TimeViper:
    return labelled_model()


def answered(said):
    return replace(said, stops=(), notes=())


def whole_prompt(model, frames, seconds, question):
    """Embeddings of the whole prompt, put together by hand from pieces of text."""
    table = model.backbone.embeddings

    def text(words):
        return table(torch.tensor([MARKS.encode(words, add_special_tokens=False)]))

    head = "<SPECIAL_10>System\n\n<SPECIAL_11>User\nThis is a video:\n"
    pieces, runs, place = [text(head)], [], len(MARKS.encode(head, add_special_tokens=False))
    for number, second in enumerate(seconds, 1):
        closing = "</img>\n" if number > 1 else ""
        label = f"{closing}Frame {number} sampled at {second:.2f} seconds: <img>"
        tokens = frames[number - 1]
        pieces += [text(label), tokens[None]]
        place += pieces[-2].shape[1]
        runs.append(VisualSpan(place, len(tokens)))
        place += len(tokens)
    tail = f"</img>\n{question}\n<SPECIAL_11>Assistant\n<think></think>"
    return torch.cat([*pieces, text(tail)], 1), runs


@pytest.mark.parametrize("name", SCHEDULES)
@torch.no_grad()
def test_a_session_reads_what_the_whole_prompt_holds(name):
    model = labelled_model(SCHEDULES[name])
    session = model.open(FRAMES, policy="uniform:6", **OPTIONS)
    seconds = session.footage.seconds.tolist()
    assert seconds == [0, 2, 4, 6, 8, 10]
    visual = model.encode(_pixels(model, FRAMES[::2]))
    embeddings, runs = whole_prompt(model, visual, seconds, QUESTIONS[1])
    segment = type(session.ended.segment).of_runs(embeddings.shape[1], runs)
    want = prefill(model.backbone, embeddings, segment, max_new_tokens=5)
    got = session.read(Question(QUESTIONS[1], max_new_tokens=5))
    agree(model.backbone, got, want)
    # text is never dropped
    labels = segment.length - segment.vision_present
    assert got.lengths[-1] == labels + (want.records[-1].tokens_after if want.records else 6 * 16)


def _pixels(model, rgb):
    from timeviper_fast.video.preprocess import resize_normalize

    vision = model.config.vision
    return resize_normalize(
        rgb, vision.image_size, vision.image_mean, vision.image_std, vision.resize
    )


def test_asking_afresh_in_a_list_and_in_a_chat_gives_the_session_s_answers(model):
    session = model.open(FRAMES, policy="fps:1", **OPTIONS)
    before = digest(session._ended)
    together = session.ask(QUESTIONS, max_new_tokens=4)
    for question, answer in zip(QUESTIONS, together):
        alone = session.ask(question, max_new_tokens=4)
        assert answered(alone) == answered(answer)
        afresh = model.ask(FRAMES, question, policy="fps:1", max_new_tokens=4, **OPTIONS)
        assert answered(afresh) == answered(alone)
    chat = session.chat()
    for question in QUESTIONS[:2]:
        said = chat.ask(question, max_new_tokens=4)
        turns = [*chat.messages[:-1]]
        assert said.text == session.ask(turns, max_new_tokens=4).text
    assert digest(session._ended) == before


def test_a_saved_session_answers_to_the_bit(model, tmp_path):
    session = model.open(FRAMES, policy="fps:1", **OPTIONS)
    session.save(tmp_path / "a.session")
    loaded = model.load_session(tmp_path / "a.session")
    assert digest(loaded._ended) == digest(session._ended)
    for question in QUESTIONS:
        one, two = (each.ask(question, max_new_tokens=4) for each in (session, loaded))
        assert answered(one) == answered(two)


def test_tokens_belong_to_their_frames_though_text_lies_between(model):
    said = model.ask(FRAMES, "What?", policy="fps:1", max_new_tokens=2, **OPTIONS)
    evidence = said.evidence
    assert evidence.seconds == said.frame_seconds == tuple(range(11))
    assert sum(evidence.kept) == len(said.kept_seconds) == said.stages[-1].after == int(176 * 0.1)
    for second, kept in zip(evidence.seconds, evidence.kept):
        assert said.kept_seconds.count(second) == kept
    assert 0 < evidence.text_mass < 1
    assert evidence.text_mass + evidence.vision_mass == pytest.approx(1)


def test_a_feature_file_answers_as_its_video(model, tmp_path):
    model.save_features(FRAMES, tmp_path / "a", policy="fps:1", frame_batch=4)
    options = {"max_new_tokens": 4, **OPTIONS}
    one = model.ask(tmp_path / "a", "What?", **options)
    assert answered(one) == answered(model.ask(FRAMES, "What?", policy="fps:1", **options))


@pytest.mark.parametrize("push", [1, 3, 11])
@pytest.mark.parametrize("announced", [False, True])
def test_a_stream_answers_as_its_file(model, push, announced):
    stream, done = model.stream(frames=11 if announced else None, **OPTIONS), 0
    while done < len(FRAMES):
        stream.push(FRAMES[done : done + push])
        done = min(done + push, len(FRAMES))
        if announced and done < 11:
            continue
        if done in (3, 9, 11):
            options = {"policy": "fps:1", "max_new_tokens": 4, **OPTIONS}
            want = model.ask(FRAMES[:done], "What?", **options)
            assert answered(stream.ask("What?", max_new_tokens=4)) == answered(want)
    assert stream.exact


def test_a_saved_stream_goes_on_with_the_next_label(model, tmp_path):
    stream = model.stream(**OPTIONS)
    stream.push(FRAMES[:6])
    stream.save(tmp_path / "a.stream")
    loaded = model.load_stream(tmp_path / "a.stream")
    for each in (stream, loaded):
        each.push(FRAMES[6:])
    one, two = (each.now() for each in (stream, loaded))
    assert digest(one._ended) == digest(two._ended)
    assert answered(one.ask("What?")) == answered(two.ask("What?"))


def test_a_bounded_stream_forgets_labels_with_their_frames(model):
    stream = model.stream(bounded="window:4s", **OPTIONS)
    labels = Labeller(model.config, MARKS)
    for turn in range(6):
        stream.push(FRAMES[:4])
        prefix = stream._prefix
        left = [len(labels.openings(s[None], int(s))[0]) for s in stream._seconds]
        assert prefix.length == len(stream.before) + sum(left) + 16 * len(left)
        assert prefix.segment.text == len(stream.before) + sum(left)
        assert len(left) <= 8, turn
    said = stream.ask("What?", max_new_tokens=2)
    assert not said.exact
    assert said.frame_seconds[0] > 15
    assert sum(said.evidence.kept) == len(said.kept_seconds)


def test_labels_count_in_the_window_of_the_model(model):
    short = replace(model.config.backbone, max_position_embeddings=420)
    narrow = labelled_model((), backbone=short)
    # 176 vision tokens, and 40 to 42 bytes of label for each of 11 frames
    with pytest.raises(ValueError, match=r"window of 420 tokens.*at most 6 frames fit"):
        narrow.ask(FRAMES, "What?", policy="fps:1", max_new_tokens=4)
    assert narrow.ask(FRAMES[:6], "What?", policy="fps:1", max_new_tokens=4).finish
    stream = narrow.stream(**OPTIONS)
    stream.push(FRAMES[:6])
    with pytest.raises(ValueError, match="push: frames must fit the model's window of 420 tokens"):
        stream.push(FRAMES[6:])


def test_frames_of_one_clip_share_a_label_and_fill_it():
    projector = replace(preset("tiny").projector, clip_frames=2)
    model = labelled_model(template="nemotron_omni", projector=projector)
    labels = Labeller(model.config, MARKS)
    openings = labels.openings(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert [MARKS.decode(ids) for ids in openings] == [
        "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: <img>",
        "</img>\nFrame 3 sampled at 1.00 seconds: <img>",
    ]
    # the last clip is filled with a copy of its frame
    assert [len(run) for run in runs_of(torch.zeros(4, 16, 8), openings)] == [32, 32]
    options = {"policy": "fps:1", "max_new_tokens": 4, **OPTIONS}
    stream = model.stream(**OPTIONS)
    stream.push(FRAMES)
    assert answered(stream.ask("What?", max_new_tokens=4)) == answered(
        model.ask(FRAMES, "What?", **options)
    )


def test_a_picture_has_no_label_and_a_video_of_one_frame_has_one(model):
    lead = "<SPECIAL_10>System\n\n<SPECIAL_11>User\nThis is a video:\n"
    one = model.open(FRAMES[:1], **OPTIONS)
    assert MARKS.decode(one.before) == lead
    label = "Frame 1 sampled at 0.00 seconds: <img>"
    assert one.ended.segment.text == len(MARKS.encode(lead + label, add_special_tokens=False))
    picture = question_prompt(model.config, MARKS, Opening(), Question("What?"), 1, 0.0, True)
    assert MARKS.decode(picture.before).endswith("User\n<img>")
    assert not Labeller(model.config, MARKS, picture=True)


def test_a_lead_and_a_system_message_stand_in_front_of_the_first_label(model):
    session = model.open(FRAMES[:3], lead="Look: ", **OPTIONS)
    head = "<SPECIAL_10>System\n\n<SPECIAL_11>User\nLook: This is a video:\n"
    assert MARKS.decode(session.before) == head
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    words = "have the text in front of the video that it was read with"
    with pytest.raises(ValueError, match=re.escape(words)):
        session.ask(told)
    options = {"policy": "fps:1", "max_new_tokens": 4, **OPTIONS}
    assert model.ask(FRAMES[:3], told, **options).token_ids


# what the recorded prompts are written with: the marks are the only special tokens
RECORDED = byte_tokenizer(("<image>", "<img>", "</img>"))
SECONDS = [33 * index / 1000 for index in (0, 15, 30, 45, 60, 75)]
CONTENT = CompressionStage(0, "content", 1.0, transfer=False, prune=0.75)
DROPPING = tuple(
    CompressionStage(stage["layer"], stage["select"], stage["keep"], transfer=False)
    for stage in manifest("interleaved_stages")["stages"]
)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> TimeViper:
    path = hub_directory(tmp_path_factory.mktemp("released") / "m")
    model = TimeViper.from_pretrained(path)
    model.config = replace(model.config, template="nemotron_vl_joined")
    model.tokenizer = RECORDED
    return model


def recorded_session(released, stages):
    """The recorded frames as a stream of announced length, a session from then on."""
    stream = released.stream(frames=6, stages=stages, chunk=48, frame_batch=4)
    frames = golden("nemotron_vl_generate")["frames"]
    for number, second in enumerate(SECONDS):
        stream.push(frames[number], [second])
    return stream.now()


@pytest.mark.parametrize(
    ("run", "stages"),
    [("full", ()), ("evs", (CONTENT,)), ("plain", DROPPING), ("after_evs", (CONTENT, *DROPPING))],
)
def test_recorded_frames_to_recorded_tokens(released, tmp_path, run, stages):
    """From uint8 frames through labels and stages to six tokens, also from the session's file."""
    data = golden("nemotron_vl_generate" if run in ("full", "evs") else "interleaved_stages")
    session = recorded_session(released, stages)
    session.save(tmp_path / "a.session")
    for one in (session, released.load_session(tmp_path / "a.session")):
        said = one.ask("What moves?", max_new_tokens=6)
        assert list(said.token_ids) == data[f"{run}.generated"].tolist()
        read = one.read(Question("What moves?", max_new_tokens=6))
        want = data[f"{run}.step_logits"][:1]
        torch.testing.assert_close(read.logits, want, rtol=0, atol=2e-4)
        records = [record for record in read.records if record.layer]
        kept = torch.arange(records[0].tokens_before if records else 0)
        for number, record in enumerate(records):
            kept = kept[record.kept[0]]
            assert torch.equal(kept, data[f"{run}.stage{number}.kept"])
    # the last frame keeps no token, but its label and marks
    if run == "evs":
        assert torch.equal(read.kept[0], data["evs.mask"].nonzero()[:, 0])
        assert 2.475 not in said.kept_seconds
        ids = data["evs.input_ids"].tolist()
        text = sum(token != 256 for token in ids)
        prompt = one.prompt(Question("What moves?"))
        assert one.ended.segment.text + len(prompt.after) == text


def test_an_answer_that_thinks_keeps_it_apart(model):
    session, heard = model.open(FRAMES[:3], **OPTIONS), []
    said = session.ask("What?", think=True, max_new_tokens=6, on_text=heard.append)
    # so few tokens of a random model do not end the thinking
    assert (said.text, heard, said.finish) == ("", [], "length")
    assert "ended while the model was thinking" in said.notes[-1]
    assert said.thinking == MARKS.decode(said.token_ids).strip()
    switched = session.ask(["What? /think", "What?"], max_new_tokens=6)
    assert (switched[0].thinking, switched[0].text) == (said.thinking, "")
    assert (switched[1].thinking, switched[1].token_ids == said.token_ids) == ("", False)
    with pytest.raises(ValueError, match="think must be True or False, got 1"):
        session.ask("What?", think=1)
    plain = labelled_model(template="nano_base")
    with pytest.raises(ValueError, match="think must be left out for a model whose template"):
        plain.ask(FRAMES[:3], "What?", think=False)
