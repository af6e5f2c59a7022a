"""VideoChat-Flash from frames to tokens, as that project's own code answered them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.hub import ABOUT, hub_directory, tiny_tower
from tests.goldens import golden
from timeviper_fast import Sampling, TimeViper
from timeviper_fast.inference import answer
from timeviper_fast.inference.generate import decode, prefill
from timeviper_fast.inference.tiles import encode_tiles
from timeviper_fast.presets import VISION_PRESETS
from timeviper_fast.stages import parse_stages

GOLDEN = golden("vcf_generate")
HICO = "uniform:2:0.75,attention:4:0.25:normed"
GREEDY = Sampling(repetition_penalty=1.0)
# run -> options beyond the model's defaults; the checkpoint's own penalty is 1.1
RUNS: dict[str, dict[str, Any]] = {
    "drop": {"stages": HICO, "sampling": GREEDY},
    "drop_penalty": {"stages": HICO},
    "nodrop": {"sampling": GREEDY},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A released directory at the size of the recorded runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VISION_PRESETS, "umt-hd-large", tiny_tower())
        yield hub_directory(tmp_path_factory.mktemp("hub") / "flash")


@pytest.fixture(scope="module")
def model(home: Path) -> TimeViper:
    return TimeViper.from_pretrained(home, device="cpu")


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Those of each step, before the penalty."""
    steps: list[torch.Tensor] = []
    monkeypatch.setattr(answer, "decode", partial(decode, on_logits=steps.append))
    return steps


def assert_answer(run: str, answer: Any, logits: list[torch.Tensor]) -> None:
    assert answer.token_ids == tuple(GOLDEN[f"{run}.generated"][0].tolist())
    torch.testing.assert_close(torch.cat(logits), GOLDEN[f"{run}.logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_a_video(model: TimeViper, logits: list[torch.Tensor], run: str) -> None:
    """8 frames at one per second: the policy, the sentence and the template are the model's."""
    answer = model.ask(GOLDEN["frames"], "What moves?", max_new_tokens=8, **RUNS[run])
    assert_answer(run, answer, logits)
    assert answer.frame_seconds == tuple(range(8))
    after = [(s.before, s.after) for s in answer.stages]
    assert after == ([(128, 96), (96, 32)] if run.startswith("drop") else [])
    kept = len(answer.kept_seconds)
    assert kept == (32 if run.startswith("drop") else 128)
    # stages of one question are not the model's
    assert model.backbone.stages == model.config.stages == ()


def test_a_session(model: TimeViper, logits: list[torch.Tensor]) -> None:
    """One question of a session, then the same among others, is the recorded answer."""
    session = model.open(GOLDEN["frames"], stages=HICO)
    options: dict[str, Any] = {"max_new_tokens": 8, "sampling": GREEDY}
    assert_answer("drop", session.ask("What moves?", **options), logits)
    logits.clear()
    answers = session.ask(["Why does it move so fast?", "What moves?", "Who?"], **options)
    logits[:] = [step[1:2] for step in logits]
    assert_answer("drop", answers[1], logits)
    assert answers[0].token_ids == session.ask("Why does it move so fast?", **options).token_ids
    assert model.backbone.stages == model.config.stages == ()


def test_an_image(model: TimeViper, logits: list[torch.Tensor], tmp_path: Path) -> None:
    """It is encoded alone, and the prompt says nothing of a video."""
    image = pytest.importorskip("PIL.Image")
    image.fromarray(GOLDEN["frames"][0].numpy()).save(tmp_path / "one.png")
    answer = model.ask(tmp_path / "one.png", "What moves?", max_new_tokens=8, sampling=GREEDY)
    assert_answer("image", answer, logits)
    assert (answer.frame_seconds, len(answer.kept_seconds)) == ((0.0,), 64)


@torch.no_grad()
def test_an_image_and_its_tiles(model: TimeViper) -> None:
    """The recorded run takes seven frames as the whole image and its tiles."""
    columns, rows = ABOUT["tiles"]["grid_wh"]
    visual = encode_tiles(model, GOLDEN["frames"][: 1 + rows * columns], rows, columns)
    ids = GOLDEN["image_input_ids"]
    cut = ids[0].tolist().index(-200)
    embeddings, segment = model.embed(ids[:, :cut], visual, ids[:, cut + 1 :])
    read = prefill(model.backbone, embeddings, segment, max_new_tokens=8)
    steps: list[torch.Tensor] = []
    said = decode(model.backbone, read, max_new_tokens=8, on_logits=steps.append)
    assert torch.stack(list(said), 1).tolist() == GOLDEN["tiles.generated"].tolist()
    torch.testing.assert_close(torch.cat(steps), GOLDEN["tiles.logits"], rtol=0, atol=1e-4)


def test_a_picture_in_tiles(model: TimeViper, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = GOLDEN["frames"][:2, :100].flatten(0, 1).numpy()  # 200 x 80: 2 x 1 tiles of 144
    image.fromarray(picture).save(tmp_path / "one.png")
    answer = model.ask(tmp_path / "one.png", "What moves?", max_new_tokens=1, tiles=True)
    assert len(answer.kept_seconds) == 3 * 64
    with pytest.raises(ValueError, match="tiles must be left out but for a single image, got True"):
        model.ask(GOLDEN["frames"], "What moves?", tiles=True)


def test_stages_at_load_time(home: Path, logits: list[torch.Tensor]) -> None:
    model = TimeViper.from_pretrained(home, device="cpu", stages=HICO)
    assert model.config.stages == parse_stages(HICO, model.config)
    answer = model.ask(GOLDEN["frames"], "What moves?", max_new_tokens=8)
    assert_answer("drop_penalty", answer, logits)
    whole = model.ask(GOLDEN["frames"], "What moves?", max_new_tokens=1, stages="none")
    assert whole.stages == ()
    assert len(model.backbone.stages) == 2
    with pytest.raises(ValueError, match=r"stages 'uniform:5:0.5' must stand before one of the bl"):
        TimeViper.from_pretrained(home, stages="uniform:5:0.5")


def test_our_own_format_answers_alike(
    model: TimeViper, logits: list[torch.Tensor], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "ours")
    again = TimeViper.from_pretrained(tmp_path / "ours", device="cpu")
    assert again.config == model.config
    answer = again.ask(GOLDEN["frames"], "What moves?", max_new_tokens=8, stages=HICO)
    assert_answer("drop_penalty", answer, logits)


def test_a_clip_that_lacks_frames_is_filled_and_says_so(model: TimeViper) -> None:
    answer = model.ask(GOLDEN["frames"][:6], "What moves?", max_new_tokens=1, policy="uniform:6")
    assert answer.notes == (
        "To fill clips of 4 frames, the video ends with 2 copies of its last frame.",
    )
    assert len(answer.kept_seconds) == 2 * 64
    # fewer than 8 frames: the model's policy repeats the last one
    answer = model.ask(GOLDEN["frames"][:6], "What moves?", max_new_tokens=1)
    assert answer.notes == (
        "To fill clips of 4 frames, the video ends with 2 copies of its last frame.",
    )
    assert answer.frame_seconds == (0, 1, 2, 3, 4, 5, 5, 5)


def test_a_prompt_longer_than_the_window_is_refused_with_numbers(model: TimeViper) -> None:
    """512 clips of 64 tokens fill the window of 32,768 without any text."""
    frames = torch.zeros(2048, 4, 4, 3, dtype=torch.uint8)
    words = "2048 frames: .* of 32768 tokens|at most 20[0-9]{2} frames fit: policy=videochat-flash"
    with pytest.raises(ValueError, match=words) as caught:
        model.ask(frames, "What moves?", policy="videochat-flash:max=2048", max_new_tokens=8)
    assert "window of 32768 tokens" in str(caught.value)


def test_the_recorded_run_is_the_one_that_is_meant() -> None:
    """The names of Qwen2's blocks in `HICO` are the recorded ones."""
    assert ABOUT["hico"]["llm_compress_layer_list"] == [2, 4]
    assert ABOUT["hico"]["llm_image_token_ratio_list"] == [1, 0.75, 0.25]


@pytest.mark.parametrize("push", [1, 3, 16])
def test_a_stream_of_clips_is_asked_between_its_frames(model: TimeViper, push: int) -> None:
    """A clip that is not whole is filled with copies of its last frame, for the question alone."""
    frames = torch.cat([GOLDEN["frames"], GOLDEN["frames"].flip(0)])
    stream, done = model.stream(stages=HICO, chunk=64, frame_batch=8), 0
    while done < len(frames):
        stream.push(frames[done : done + push])
        done = min(done + push, len(frames))
        if done in (3, 6, 8, 15, 16):
            said = stream.ask("What moves?", max_new_tokens=3, mention_duration=False)
            whole = model.ask(
                frames[:done],
                "What moves?",
                policy="fps:1",
                stages=HICO,
                chunk=64,
                frame_batch=8,
                max_new_tokens=3,
                mention_duration=False,
            )
            assert replace(said, stops=()) == replace(whole, stops=())


def test_one_announced_frame_is_a_clip(model: TimeViper) -> None:
    answers = []
    for announced in (1, None):
        stream = model.stream(frames=announced, stages=HICO)
        stream.push(GOLDEN["frames"][0])
        answers.append(stream.ask("What moves?", max_new_tokens=2).token_ids)
    assert answers[0] == answers[1]
