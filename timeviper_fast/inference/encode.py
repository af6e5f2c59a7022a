"""A video to visual tokens, batch by batch: decode, resize, vision, merge, project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stops import Stop, StopWatch
from timeviper_fast.video import Progress, Video
from timeviper_fast.video.preprocess import resize_normalize

__all__ = ["encode_video", "shape_of", "token_seconds"]


def encode_video(
    model: TimeViperNetwork,
    source: Video,
    indices: Tensor,
    frame_batch: int | None,
    watch: StopWatch,
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:
    """Visual tokens (frames, n, d_model) of the frames at `indices`, and the frames' seconds.

    If the last clip lacks frames, its last frame is repeated: there are more tokens than seconds.
    """
    vision, clip = model.config.vision, model.config.projector.clip_frames
    batch = frame_batch or (256 if model.device.type == "cuda" else 16)
    tokens: list[Tensor] = []
    seconds: list[Tensor] = []
    done = 0
    batches = source.frames(indices, -(-batch // clip) * clip)
    while True:
        with watch.at("decode") as stop:
            frames = next(batches, None)
        if frames is None:
            return torch.cat(tokens), torch.cat(seconds)
        done += len(frames.seconds)
        stop.shape = f"{done} x {shape_of(frames.rgb[0])}"
        with watch.at("resize") as stop:
            rgb = _whole_clips(frames.rgb, clip).to(model.device)
            pixels = resize_normalize(
                rgb, vision.image_size, vision.image_mean, vision.image_std, vision.resize
            ).to(model.dtype)
            stop.shape = f"{done} x {shape_of(pixels[0])}"
        with watch.at("vision") as stop:
            features = model.vision(pixels)
            _note(stop, features, done)
        with watch.at("merge") as stop:
            merged = model.projector.merge(features)
            _note(stop, merged, done)
        with watch.at("project") as stop:
            tokens.append(model.projector.project(merged))
            _note(stop, tokens[-1], done)
        seconds.append(frames.seconds)
        if progress is not None:
            progress("frames", done, len(indices))


def token_seconds(times: Tensor, counts: Sequence[int]) -> Tensor:
    """The second of each vision token.

    Args:
        times: (frames,) seconds of the frames that were looked at.
        counts: vision tokens of each frame; frames beyond the last one repeat it, as in a clip
            that is filled up.
    """
    frames = torch.arange(len(counts)).clamp_max(len(times) - 1)
    return times[frames].repeat_interleave(torch.tensor(counts))


def _whole_clips(rgb: Tensor, clip: int) -> Tensor:
    """Repeat the last frame until the frames fill whole clips."""
    missing = -len(rgb) % clip
    return torch.cat([rgb, rgb[-1:].expand(missing, -1, -1, -1)]) if missing else rgb


def shape_of(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))


def _note(stop: Stop, batch: Tensor, frames: int) -> None:
    """Sizes of one stop over the whole video, read off one batch of it."""
    stop.shape = f"{frames} x {shape_of(batch[0])}"
    stop.tokens = str(frames * batch.shape[1])
