"""What the page shows of a video: its length, the plan for it, and single frames as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from timeviper_fast.inference.gpus import GPUS
from timeviper_fast.inference.plan import plan
from timeviper_fast.inference.request import Opening
from timeviper_fast.serve.faults import too_long
from timeviper_fast.serve.media import Media
from timeviper_fast.stages import parse_stages
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video import Video, open_video

__all__ = ["film_of", "frames_of", "gpu_named"]

# what photographs take well, and signs too
_QUALITY = 88


def film_of(media: Media, opening: Opening, model: TimeViper, ends: float) -> dict[str, Any]:
    """Facts of a video and the plan of asking about it; no frame is decoded.

    Args:
        opening: how the model reads it.
        ends: the monotonic clock's seconds at which this is given up.

    Returns:
        `start` and `end` in the video's own seconds, `fps`, `size` as (height, width), `frames`
        that it holds, `asked` of them that the model looks at, by which `policy`, `notes`, and the
        `plan`.

    Raises:
        Fault: it takes too long.
        ValueError: no video, or one that does not fit the model's window or memory.
    """
    config = model.config
    if opening.stages is not None:
        config = replace(config, stages=parse_stages(opening.stages, config))
    with _opened(media, opening, ends) as video:
        read = opening.of_model(config, video.is_image)
        asked = len(video.sample(read.policy or config.policy, start=read.start, end=read.end))
        start = float(video.seconds[0])
        made = plan(
            config,
            asked,
            dtype=str(model.dtype).removeprefix("torch."),
            gpu=_gpu(model.device),
            chunk=opening.chunk,
            frame_batch=opening.frame_batch,
            policy=read.policy,
        )
        return {
            "start": start,
            "end": start + video.duration,
            "fps": video.fps,
            "size": video.size,
            "frames": video.num_frames,
            "asked": asked,
            "policy": str(read.policy),
            "notes": list(video.notes),
            "plan": made.to_dict(),
        }


def frames_of(
    media: Media, seconds: Sequence[float], side: int, opening: Opening, ends: float
) -> list[dict[str, Any]]:
    """The frames nearest to some seconds, as pictures.

    Args:
        side: pixels of the longer side, at most.
        opening: says whether damaged frames are left out.
        ends: as in `film_of`.

    Returns:
        For each of the seconds, in order: the `second` of the frame, and its `image` as a data URL
        of a JPEG. With `on_error="use"`, the nearest frame of those that decode.

    Raises:
        Fault: it takes too long.
        ValueError: no video, or a frame that does not decode.
    """
    with _opened(media, opening, ends) as video:
        wanted = sorted({int((video.seconds - second).abs().argmin()) for second in seconds})
        images: dict[float, str] = {}
        with closing(video.frames(wanted, batch_size=1)) as frames:  # type: ignore[type-var]
            for frame in frames:
                _in_time(ends)
                images[float(frame.seconds[0])] = _jpeg(frame.rgb[0], side)
    nearest = (min(images, key=partial(_distance, second)) for second in seconds)
    return [{"second": second, "image": images[second]} for second in nearest]


def _distance(one: float, other: float) -> float:
    return abs(one - other)


@contextmanager
def _opened(media: Media, opening: Opening, ends: float) -> Iterator[Video]:
    def progress(*_: object) -> None:
        _in_time(ends)

    with open_video(media.source, on_error=opening.on_error, progress=progress) as video:
        yield video


def _in_time(ends: float) -> None:
    if monotonic() > ends:
        raise too_long()


def _jpeg(rgb: Tensor, side: int) -> str:
    """A data URL of a frame (H, W, 3) uint8."""
    from PIL import Image

    picture = Image.fromarray(rgb.numpy())
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _gpu(device: torch.device) -> str | None:
    """The device as the planner names it; None for a CPU, whose memory has no floors of time."""
    if device.type != "cuda":
        return None
    found = gpu_named(torch.cuda.get_device_name(device))
    return found or f"{torch.cuda.mem_get_info(device)[1] // 10**9}GB"


def gpu_named(name: str) -> str | None:
    """The planner's GPU of a driver's name, as "NVIDIA A100-SXM4-80GB"; None if it has none."""
    plain = name.lower().replace(" ", "")
    fits = (gpu for gpu in GPUS if all(part in plain for part in gpu.split("-")))
    return next(fits, None)
