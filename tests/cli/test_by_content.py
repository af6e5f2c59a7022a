"""A thousand frames on the command line, of which a content stage keeps those that change."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.common import one_line
from tests.nemotron_vl_directory import hub_directory
from timeviper_fast import TimeViper
from timeviper_fast.inference.content_stage import ContentStage, held_tokens
from timeviper_fast.inference.encode import FrameEncoder, encode_video
from timeviper_fast.model.content import changes, most_changed
from timeviper_fast.stops import StopWatch
from timeviper_fast.video import open_video

FRAMES, EARLY, LATE = 1_000, 40, 960


@pytest.fixture(scope="module")
def frames(home: Path) -> Path:
    """Still pictures, of which every tenth is a little brighter, and another one for a moment early
    and late."""
    drawn = np.random.default_rng(0)
    taken = np.repeat(drawn.integers(0, 200, (1, 24, 24, 3), dtype=np.uint8), FRAMES, axis=0)
    taken[::10] += 3
    for needle in (EARLY, LATE):
        taken[needle] = drawn.integers(0, 255, (24, 24, 3), dtype=np.uint8)
    np.save(home / "frames.npy", taken)
    return home / "frames.npy"


# the labels alone are 40,000 tokens, one for each byte
LABELLED = pytest.param("labelled frames", marks=pytest.mark.long)


@pytest.fixture(scope="module", params=["merged tokens", LABELLED])
def directory(home: Path, request: pytest.FixtureRequest) -> Path:
    """A model that merges patches, or one in Nemotron-Nano-VL's layout on the hub."""
    if request.param == "merged tokens":
        return home / "model"
    return hub_directory(home / "hub")


@pytest.fixture(scope="module")
def scores(directory: Path, frames: Path) -> torch.Tensor:
    """(frames, n), the change of each token, of the whole video at once."""
    model = TimeViper.from_pretrained(directory)
    with open_video(frames) as video:
        watch = StopWatch(torch.device("cpu"))
        parts = encode_video(model, video, torch.arange(FRAMES), 8, watch, None)
        best = model.config.projector.merges
        return changes(torch.cat([part.tokens for part in parts]), None, best)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The most batches of visual tokens, and of tokens in a content stage, that lived at a time."""
    most = {"batches": 0, "tokens": 0}
    encode, hold = FrameEncoder._encoded, ContentStage._hold
    batches: list[weakref.ref[torch.Tensor]] = []

    def encoded(self, pixels):
        batches.append(weakref.ref(tokens := encode(self, pixels)))
        most["batches"] = max(most["batches"], sum(batch() is not None for batch in batches))
        return tokens

    def held(self, rows, change):
        hold(self, rows, change)
        most["tokens"] = max(most["tokens"], self.held.vision)

    monkeypatch.setattr(FrameEncoder, "_encoded", encoded)
    monkeypatch.setattr(ContentStage, "_hold", held)
    return most


@pytest.mark.parametrize("prune", [0.7, 0.9])
def test_a_thousand_frames_in_bounded_memory(run, directory, frames, scores, live, prune):
    each, tokens = scores.shape[1], scores.numel()
    stage = TimeViper.from_pretrained(directory, stages=f"content:{prune}").config.stages[0]
    how = ("--chunk", 512, "--frame-batch", 8, "--sample", f"uniform:{FRAMES}")
    told = ("--stages", f"content:{prune}", "--max-new-tokens", 1, "--json", "--quiet")
    code, out, err = run("ask", frames, "Which?", "--model", directory, *how, *told)
    assert code == 0, err
    answer = json.loads(out)
    kept = stage.kept_count(tokens, each)
    assert answer["stages"] == [{"layer": 0, "before": tokens, "after": kept}]
    assert live["batches"] <= 2
    assert live["tokens"] <= held_tokens(stage, tokens, each) <= kept + 32 * each
    stays = most_changed(scores.flatten(), kept).unflatten(0, scores.shape).sum(1)
    shown = torch.tensor(answer["frame_seconds"]).repeat_interleave(stays)
    assert answer["kept_seconds"] == pytest.approx(shown.tolist())
    # a frame that differs keeps all of its tokens, and so does the one behind it
    assert stays[[0, EARLY, EARLY + 1, LATE, LATE + 1]].tolist() == [each] * 5


def test_mistakes(run, home, frames):
    asked = ("ask", frames, "What?", "--model", home / "model", "--stages")
    one_line(run(*asked, "content:1.5"), "'content:1.5' must remove a share that can lie in [0, 1)")
    one_line(
        run(*asked, "uniform:2:0.5,content:0.5"), "content must stand in the first stage alone"
    )
