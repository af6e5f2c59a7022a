"""Each vision token has the second of its frame."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from timeviper_fast.config import ProjectorConfig, VisionConfig
from timeviper_fast.inference.encode import encode_video, filling_note, token_seconds
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.presets import preset
from timeviper_fast.stops import StopWatch
from timeviper_fast.video import open_video
from timeviper_fast.video.preprocess import resize_normalize


def test_each_token_has_the_second_of_its_frame():
    times = torch.tensor([0.0, 0.5, 2.0])
    assert token_seconds(times, [2, 0, 1]).tolist() == [0.0, 0.0, 2.0]
    # a clip that was filled up with its last frame
    assert token_seconds(times, [1, 1, 1, 2]).tolist() == [0.0, 0.5, 2.0, 2.0, 2.0]


def test_tokens_of_a_clip_have_the_second_of_its_middle_frame():
    """A merged token holds patches of any frame of its clip, so no order is read into them."""
    times = torch.arange(6.0)
    seconds = token_seconds(times, [2] * 8, clip=4).tolist()
    # the last clip has two frames and two copies of the second one
    assert seconds == [1.0] * 8 + [4.0] * 8
    assert token_seconds(times[:5], [1] * 8, clip=4).tolist() == [1.0] * 4 + [4.0] * 4
    assert token_seconds(times[:1], [64], clip=4).tolist() == [0.0] * 64


def test_copies_that_fill_a_clip_are_told():
    assert filling_note(8, 4) == filling_note(7, 1) == ()
    assert filling_note(5, 4) == (
        "To fill clips of 4 frames, the video ends with 3 copies of its last frame.",
    )
    assert filling_note(7, 4)[0].endswith("with 1 copy of its last frame.")
    # the policy may have filled it
    assert filling_note(8, 4, repeated=1) == filling_note(7, 4)
    # 3 frames make two clips by VideoChat-Flash's rule
    assert "4 frames, the video ends with 5 copies" in filling_note(8, 4, repeated=5)[0]
    # a still video has equal times, and nothing is filled where frames stand alone
    assert filling_note(8, 1, repeated=2) == ()


@pytest.mark.parametrize("kind", ["umt", "internvideo2"])
@torch.no_grad()
def test_clips_of_a_video_in_batches_and_an_image(kind):
    """Batches hold whole clips, the last frame fills the last one, and an image is alone."""
    vision = VisionConfig(
        kind=kind,
        image_size=24,
        patch_size=6,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        clip_frames=4,
    )
    projector = ProjectorConfig(num_tokens=4, clip_frames=4, image_tokens=12)
    model = TimeViperNetwork(replace(preset("tiny"), vision=vision, projector=projector))
    init_weights(model, seed=2)
    rgb = torch.randint(0, 256, (10, 30, 40, 3), dtype=torch.uint8)
    pixels = resize_normalize(rgb, 24)

    def encoded(indices):
        with open_video(rgb) as source:
            watch = StopWatch(torch.device("cpu"))
            return encode_video(model, source, torch.tensor(indices), 3, watch, None)

    tokens, seconds = encoded(range(9))
    assert (tokens.shape, seconds.tolist()) == ((12, 4, 128), list(range(9)))
    filled = pixels[[*range(9), 8, 8, 8]]
    torch.testing.assert_close(tokens, model.encode(filled), rtol=0, atol=1e-5)
    # Pictures change their size behind frame 6, which ends a batch. Clips go on: only the last one
    # holds copies.
    small = torch.randint(0, 256, (4, 16, 20, 3), dtype=torch.uint8)
    mixed = torch.cat([pixels[:6], resize_normalize(small, 24)])[[*range(9), 8, 8, 8]]
    parts = [(rgb[:4], 0), (rgb[4:6], 4), (small[:3], 6)]
    batches = [SimpleNamespace(rgb=p, seconds=torch.arange(at, at + len(p))) for p, at in parts]
    video: Any = SimpleNamespace(frames=lambda *_: iter(batches))
    watch = StopWatch(torch.device("cpu"))
    tokens, seconds = encode_video(model, video, torch.arange(9), 4, watch, None)
    assert seconds.tolist() == list(range(9))
    torch.testing.assert_close(tokens, model.encode(mixed), rtol=0, atol=1e-5)
    image, _ = encoded([7])
    torch.testing.assert_close(image, model.encode(pixels[7:8], images=True), rtol=0, atol=1e-5)
    assert image.shape == (1, 12, 128)
