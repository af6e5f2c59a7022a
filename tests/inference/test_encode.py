"""Each vision token has the second of its frame."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from timeviper_fast.config import ProjectorConfig, VisionConfig
from timeviper_fast.inference.encode import (
    Encoded,
    FrameEncoder,
    encode_video,
    filling_note,
    token_seconds,
)
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.presets import preset
from timeviper_fast.stops import StopWatch
from timeviper_fast.video import Frames, VideoError, open_video, write_video
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


def clip_model(kind: str = "umt", clip: int = 4) -> TimeViperNetwork:
    """A small model whose vision encoder takes clips of 4 frames, or single frames."""
    vision = VisionConfig(
        kind=kind if clip > 1 else "siglip",
        image_size=24,
        patch_size=6,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        clip_frames=clip,
    )
    projector = ProjectorConfig(
        num_tokens=4, clip_frames=clip, image_tokens=12 if clip > 1 else None
    )
    model = TimeViperNetwork(replace(preset("tiny"), vision=vision, projector=projector))
    init_weights(model, seed=2)
    return model.eval()


def joined(batches: Iterable[Encoded]) -> tuple[Tensor, Tensor]:
    """The tokens and the seconds of all batches."""
    tokens, seconds = zip(*batches)
    return torch.cat(tokens), torch.cat(seconds)


@pytest.mark.parametrize("kind", ["umt", "internvideo2"])
@torch.no_grad()
def test_clips_of_a_video_in_batches_and_an_image(kind):
    """Batches hold whole clips, the last frame fills the last one, and an image is alone."""
    model = clip_model(kind)
    rgb = torch.randint(0, 256, (10, 30, 40, 3), dtype=torch.uint8)
    pixels = resize_normalize(rgb, 24)

    def encoded(indices):
        with open_video(rgb) as source:
            watch = StopWatch(torch.device("cpu"))
            return joined(encode_video(model, source, torch.tensor(indices), 3, watch, None))

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
    video: Any = SimpleNamespace(frames=lambda *_, **__: (batch for batch in batches))
    watch = StopWatch(torch.device("cpu"))
    tokens, seconds = joined(encode_video(model, video, torch.arange(9), 4, watch, None))
    assert seconds.tolist() == list(range(9))
    torch.testing.assert_close(tokens, model.encode(mixed), rtol=0, atol=1e-5)
    image, _ = encoded([7])
    torch.testing.assert_close(image, model.encode(pixels[7:8], images=True), rtol=0, atol=1e-5)
    assert image.shape == (1, 12, 128)


def film(count: int) -> Frames:
    """Frames of two sizes: it changes behind frame 5."""
    generator = torch.Generator().manual_seed(count)
    rgb = torch.randint(0, 256, (count, 30, 40, 3), dtype=torch.uint8, generator=generator)
    return Frames(rgb, torch.arange(count, dtype=torch.float64) / 3)


def pushed(encoder: FrameEncoder, frames: Frames, sizes: Iterator[int]) -> list[Encoded]:
    """All batches, the frames pushed in pieces of these sizes from a buffer that is reused."""
    found, at = [], 0
    while at < len(frames.seconds):
        size = next(sizes)
        buffer = Frames(frames.rgb[at : at + size].clone(), frames.seconds[at : at + size].clone())
        found += encoder.push(buffer)
        buffer.rgb.zero_()
        buffer.seconds.fill_(-1)
        at += size
    last = encoder.rest()
    return found + ([last] if last else [])


@pytest.mark.parametrize("clip", [1, 4])
def test_the_bits_do_not_depend_on_how_frames_are_pushed(clip, monkeypatch):
    model, frames = clip_model(clip=clip), film(23)
    seen: list[Tensor] = []
    monkeypatch.setattr(
        model.vision,
        "forward",
        lambda pixels, images, call=model.vision.forward: (
            seen.append(pixels.clone()),
            call(pixels, images),
        )[1],
    )
    whole = pushed(FrameEncoder(model, 6), frames, iter([23]))
    batch = 6 if clip == 1 else 8
    rest = 5 if clip == 1 else 8
    assert [len(pixels) for pixels in seen] == [batch] * (23 // batch) + [rest]
    assert [len(one.seconds) for one in whole] == [batch] * (23 // batch) + [23 % batch]
    assert torch.equal(torch.cat([one.seconds for one in whole]), frames.seconds)
    expected = seen.copy()
    for sizes in ([1] * 23, [5, 1, 17], [7, 8, 8], [3] * 8):
        seen.clear()
        found = pushed(FrameEncoder(model, 6), frames, iter(sizes))
        for one, other in zip(whole, found, strict=True):
            assert torch.equal(one.tokens, other.tokens)
            assert torch.equal(one.seconds, other.seconds)
        assert all(map(torch.equal, seen, expected))


def test_a_change_of_size_does_not_end_a_batch():
    """The frames are resized to one size, so a batch holds frames from both sides of the change."""
    model, frames = clip_model(), film(5)
    small = Frames(frames.rgb[:, :18, :20], frames.seconds + 5)
    encoder = FrameEncoder(model, 8)
    assert not [*encoder.push(frames)]
    (first,) = encoder.push(small)
    pixels = torch.cat([resize_normalize(frames.rgb, 24), resize_normalize(small.rgb, 24)])
    assert torch.equal(first.tokens, model.encode(pixels[:8]))
    assert torch.equal(encoder.pending.pixels, pixels[8:])


def test_the_rest_of_a_stream_leaves_the_encoder_as_it_was():
    model, frames = clip_model(), film(19)
    whole = pushed(FrameEncoder(model, 8), frames, iter([19]))
    encoder, found = FrameEncoder(model, 8), []
    assert encoder.rest() is None
    for at in range(19):
        found += encoder.push(Frames(frames.rgb[at : at + 1], frames.seconds[at : at + 1]))
        if last := encoder.rest():
            assert len(last.tokens) == -(-len(last.seconds) // 4) * 4
            assert int(last.seconds[-1] * 3 + 0.5) == at
    found.append(encoder.rest())
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(whole, found))


def test_frames_that_wait_can_be_put_into_another_encoder():
    model, frames = clip_model(), film(11)
    encoder, other = FrameEncoder(model, 8), FrameEncoder(model, 8)
    assert len([*encoder.push(frames)]) == 1
    other.pending = encoder.pending
    assert other.pending.seconds.tolist() == frames.seconds[8:].tolist()
    later = Frames(frames.rgb[:5], frames.seconds[:5] + 4)
    (one,), (another,) = encoder.push(later), other.push(later)
    assert torch.equal(one.tokens, another.tokens)
    assert torch.equal(one.seconds, another.seconds)
    pixels, seconds = torch.zeros(8, 3, 24, 24), torch.zeros(8, dtype=torch.float64)
    for wrong, rule in (
        ((pixels[:2], seconds[:3]), "have as many seconds as pixels, and fewer than 8"),
        ((pixels, seconds), "have as many seconds as pixels, and fewer than 8"),
        ((pixels[..., :5], seconds), r"have pixels \(k, 3, 24, 24\) of torch.float32"),
        ((pixels.half(), seconds), "have pixels"),
    ):
        with pytest.raises(ValueError, match=f"^FrameEncoder: pending must {rule}"):
            other.pending = wrong
    with pytest.raises(ValueError, match="push: frames must have one second for each picture"):
        [*encoder.push(Frames(frames.rgb, seconds))]


def threads() -> int:
    return sum(thread.name == "read-ahead" for thread in threading.enumerate())


def test_the_decoding_thread_ends_however_encoding_ends(tmp_path):
    model, path = clip_model(clip=1), tmp_path / "film.mp4"
    write_video(path, film(40).rgb, fps=10)

    def reading(source, progress=None):
        watch = StopWatch(model.device)
        return encode_video(model, source, torch.arange(40), 2, watch, progress)

    def fail(*_):
        raise KeyboardInterrupt

    with open_video(path) as source:
        # nothing is decoded before the first batch is asked for
        batches = reading(source)
        assert not threads()
        # the caller loses interest, in three ways
        next(batches)
        assert threads() == 1
        batches.close()
        assert not threads()
        batches = reading(source)
        next(batches)
        del batches
        gc.collect()
        assert not threads()
        batches = reading(source)
        next(batches)
        source.close()
        assert not threads()
        # the caller is interrupted
        with pytest.raises(KeyboardInterrupt):
            list(reading(source, fail))
        assert not threads()
        # all is read
        assert sum(len(one.tokens) for one in reading(source)) == 40
        assert not threads()
    # the file breaks behind the first pictures
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    with open_video(path) as source, pytest.raises(VideoError, match="cannot be decoded"):
        list(reading(source))
    assert not threads()
    if (open_files := Path("/proc/self/fd")).is_dir():
        assert str(path) not in [os.path.realpath(file) for file in open_files.iterdir()]


def test_an_error_while_decoding_reaches_the_caller_as_itself(tmp_path):
    model = clip_model(clip=1)
    error = VideoError("frame 5 is damaged")

    def frames(*_, **__):
        yield film(4)
        raise error

    source: Any = SimpleNamespace(frames=frames)
    batches = encode_video(model, source, torch.arange(9), 4, StopWatch(model.device), None)
    assert len(next(batches).tokens) == 4
    with pytest.raises(VideoError) as caught:
        next(batches)
    assert caught.value is error
