"""A video to visual tokens, batch by batch: decode, resize, vision, merge, project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stops import Stop, StopWatch
from timeviper_fast.video import Progress, Video
from timeviper_fast.video.preprocess import resize_normalize

__all__ = ["encode_video", "filling_note", "shape_of", "token_seconds"]


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
    A single frame is an image: it is encoded alone.
    """
    vision, images = model.config.vision, len(indices) == 1
    clip = 1 if images else model.config.clip_frames
    batch = frame_batch or (256 if model.device.type == "cuda" else 16)
    tokens: list[Tensor] = []
    seconds: list[Tensor] = []
    done = 0
    # frames of a clip that is not whole yet: a batch ends early where the frames' size changes
    left = torch.empty(0, device=model.device, dtype=model.dtype)
    batches = source.frames(indices, -(-batch // clip) * clip)
    while True:
        with watch.at("decode") as stop:
            frames = next(batches, None)
        if frames is None:
            left = _whole_clips(left, clip)
        else:
            done += len(frames.seconds)
            seconds.append(frames.seconds)
            stop.shape = f"{done} x {shape_of(frames.rgb[0])}"
            with watch.at("resize") as stop:
                pixels = resize_normalize(
                    frames.rgb.to(model.device),
                    vision.image_size,
                    vision.image_mean,
                    vision.image_std,
                    vision.resize,
                ).to(model.dtype)
                stop.shape = f"{done} x {shape_of(pixels[0])}"
            left = torch.cat([left, pixels]) if len(left) else pixels
        pixels, left = left.split([len(left) // clip * clip, len(left) % clip])
        if not len(pixels):
            if frames is None:
                return torch.cat(tokens), torch.cat(seconds)
            continue
        with watch.at("vision") as stop:
            features = model.vision(pixels, images)
            _note(stop, features, done)
        with watch.at("merge") as stop:
            merged = model.projector.merge(features, images)
            _note(stop, merged, done)
        with watch.at("project") as stop:
            tokens.append(model.projector.project(merged))
            _note(stop, tokens[-1], done)
        if progress is not None:
            progress("frames", done, len(indices))


def token_seconds(times: Tensor, counts: Sequence[int], clip: int = 1) -> Tensor:
    """The second of each vision token: that of its frame, or of its clip's middle frame.

    Args:
        times: (frames,) seconds of the frames that were looked at.
        counts: vision tokens of each frame; frames beyond the last one repeat it, as in a clip
            that is filled up.
        clip: frames that are merged together. Their tokens hold patches of any of them.
    """
    last = len(times) - 1
    frames = torch.arange(len(counts)).clamp_max(last)
    first = frames // clip * clip
    # the earlier one of two middle frames; repeated frames do not count
    middle = (first + (first + clip - 1).clamp_max(last)) // 2
    return times[middle].repeat_interleave(torch.tensor(counts))


def filling_note(frames: int, clip: int, repeated: int = 0) -> tuple[str, ...]:
    """A sentence about the copies of the last frame that fill clips; () if there are none.

    Args:
        frames: how many were looked at.
        clip: frames that are encoded or merged together.
        repeated: how many of them are copies of the last one, by the sampling policy.
    """
    missing = -frames % clip + repeated
    if clip == 1 or not missing:
        return ()
    copies = "1 copy" if missing == 1 else f"{missing} copies"
    return (f"To fill clips of {clip} frames, the video ends with {copies} of its last frame.",)


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
