"""Feature files: a video's merged features in front of the projector, as one safetensors file.

They depend on the vision encoder and on how it merges, and on nothing behind: projector, LLM and
compression stages may be others when the file is opened.

    features    (1, frames, n, vision_size), with the copies of the last frame that fill a clip
    seconds     float64, of each frame
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from timeviper_fast.checkpoint.files import FLOATS
from timeviper_fast.errors import ArgumentError
from timeviper_fast.inference.encode import Encoded, encode_video, note_size
from timeviper_fast.inference.footage import bytes_of
from timeviper_fast.inference.request import Opening
from timeviper_fast.inference.tensor_file import (
    Entry,
    Header,
    mapped,
    read_header,
    target_of,
    write_tensors,
)
from timeviper_fast.model.fingerprint import vision_fingerprint
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stops import StopWatch
from timeviper_fast.video import Progress, Video, open_video
from timeviper_fast.video.times import Span

__all__ = ["FORMAT", "Features", "feature_misfit", "is_feature_file", "save_features"]

FORMAT, VERSION = "timeviper_fast.features", 1
# options that say which frames are looked at; the others are those of opening the file
_OF_FRAMES = ("policy", "start", "end", "on_error")


def is_feature_file(source: object) -> bool:
    """Whether it is the path of a feature file, by its content."""
    if not isinstance(source, (str, os.PathLike)) or not Path(source).is_file():
        return False
    header = read_header(Path(source))
    return header is not None and header.texts.get("format") == FORMAT


@torch.no_grad()
def save_features(
    model: TimeViperNetwork,
    video: Any,
    opening: Opening,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Encode a video into a file; `TimeViper.save_features` has the details."""
    target = target_of("save_features", path, overwrite)
    opened = video
    if not isinstance(video, Video):
        opened = open_video(video, on_error=opening.on_error, progress=progress)
    with opened as source:
        chosen = opening.of_model(model.config, source.is_image)
        assert chosen.policy is not None
        indices = source.sample(chosen.policy, start=chosen.start, end=chosen.end)
        seen = model.seeing(*source.size)
        duration = source.span(chosen.start, chosen.end, chosen.policy).duration
        watch = StopWatch(model.device)
        options = (chosen.frame_batch, watch, progress)
        parts = list(encode_video(seen, source, indices, *options, project=False))
        told = {
            "name": source.name,
            "size": bytes_of(source.name),
            "duration": duration,
            "is_image": source.is_image,
            "lost_frames": source.lost_frames,
            "notes": source.notes,
            # a single frame is encoded as an image
            "images": len(indices) == 1,
        }
        if seen is not model:
            told["frame"] = source.size
    read = {name: getattr(chosen, name) for name in _OF_FRAMES}
    if not isinstance(chosen.policy, str):
        read["policy"] = None
    texts = {"video": json.dumps(told), "opening": json.dumps(read)}
    tensors = {
        # on the host: a GPU has better use for its memory
        "features": [part.tokens.cpu()[None] for part in parts],
        "seconds": [torch.cat([part.seconds for part in parts])],
    }
    policy = json.dumps(read["policy"] or repr(chosen.policy))
    about = {"format": FORMAT, "format_version": str(VERSION), "policy": policy}
    write_tensors(target, tensors, {**about, **texts, **_model_texts(model)})


def _model_texts(model: TimeViperNetwork) -> dict[str, str]:
    """What a file must agree with to be read by a model."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {"dtype": dtype, "fingerprint": vision_fingerprint(model)}


def feature_misfit(
    header: Header | None, model: TimeViperNetwork, opening: Opening, size: int | None
) -> str | None:
    """How a file differs from what this model would write of a video of `size` bytes; None if it
    does not."""
    if header is None or header.texts.get("format") != FORMAT:
        return "a file that is damaged or of another kind"
    for name, own in {"format_version": str(VERSION), **_model_texts(model)}.items():
        if header.texts.get(name) != own:
            return f"another {name}"
    video, read = (json.loads(header.texts[name]) for name in ("video", "opening"))
    if video["size"] != size:
        return f"one of a video of {video['size']} bytes, not {size}"
    wanted = opening.of_model(model.config, video["is_image"])
    for name in _OF_FRAMES:
        if getattr(wanted, name) != read[name]:
            return f"one with {name}={read[name]!r}, not {getattr(wanted, name)!r}"
    return None


class Features:
    """A feature file, read as an opened `Video`: the frames that were chosen when it was written.

    Attributes:
        name, is_image, lost_frames, notes: of the video.
        seconds: (frames,) float64, when each is shown.
        duration: seconds of the part that was looked at.
        bytes: of the video; None where it was no file.
        size: (height, width) of the video's frames in pixels; (1, 1) where the model takes none.

    Raises:
        ValueError: another version, vision encoder, merging or dtype, or a damaged file.
    """

    def __init__(self, path: str | os.PathLike[str], model: TimeViperNetwork) -> None:
        self._path = Path(path)
        header = read_header(self._path)
        assert header is not None
        self._check(header.texts, model)
        try:
            video, self._read = (json.loads(header.texts[name]) for name in ("video", "opening"))
            self.name, self.bytes, self.duration = (video[n] for n in ("name", "size", "duration"))
            self.is_image, self.lost_frames = video["is_image"], video["lost_frames"]
            self.notes, self._images = tuple(video["notes"]), bool(video["images"])
            height, width = video.get("frame", (1, 1))
            self.size: tuple[int, int] = int(height), int(width)
            frames = header.entries["seconds"].shape[0]
        except (KeyError, TypeError, ValueError) as error:
            self._refuse("describe itself in its header", f"a damaged one ({error!r})")
        wanted = _entries(model.seeing(*self.size), frames, self._images)
        if header.entries != wanted:
            self._refuse(f"hold {wanted}", str(header.entries))
        with mapped(self._path) as tensors:
            self._features: Tensor = tensors.get_tensor("features")[0]
            self.seconds: Tensor = tensors.get_tensor("seconds").clone()

    def _refuse(self, rule: str, value: object) -> NoReturn:
        raise ArgumentError("open", "video", rule, value, part=f" {self._path}")

    def _check(self, texts: Mapping[str, str], model: TimeViperNetwork) -> None:
        for name, own in {"format_version": str(VERSION), **_model_texts(model)}.items():
            its = texts.get(name, "none")
            if its != own:
                what = "vision weights and merging" if name == "fingerprint" else name
                self._refuse(f"fit this model: {what} must be {own[:16]}", its[:16])

    def opening(self, opening: Opening) -> Opening:
        """How the video was read, with the options of reading the file.

        Raises:
            ValueError: options that choose frames, which were chosen already.
        """
        for name in (*_OF_FRAMES, "tiles"):
            given = getattr(opening, name)
            if given != getattr(Opening, name):
                rule = "be left out for a feature file, whose frames are chosen already"
                raise ArgumentError("open", name, rule, repr(given))
        return replace(opening, **self._read)

    def sample(self, policy: object, **part: object) -> Tensor:
        """The numbers of its frames: they were chosen when the file was written."""
        return torch.arange(len(self.seconds))

    def span(self, *part: object) -> Span:
        return Span(0, len(self.seconds), self.duration)

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open: the tensors are mapped while they are used."""

    def encoded(
        self,
        model: TimeViperNetwork,
        frame_batch: int | None,
        watch: StopWatch,
        progress: Progress | None,
    ) -> Iterator[Encoded]:
        """Visual tokens, in the batches in which `encode_video` gives those of the video."""
        frames, clip = len(self.seconds), 1 if self._images else model.config.clip_frames
        batch = min(frame_batch or (256 if model.device.type == "cuda" else 16), frames)
        batch = -(-batch // clip) * clip
        share = 1 if self._images else model.config.vision.frames_per_patch
        for first in range(0, frames, batch):
            part = slice(first // share, (first + batch) // share)
            merged = self._features[part].to(model.device)
            with watch.at("project") as stop:
                tokens = model.projector.project(merged)
                note_size(stop, tokens, -(-min(first + batch, frames) // share))
            if progress is not None:
                progress("frames", min(first + batch, frames), frames)
            yield Encoded(tokens, self.seconds[first : first + batch])


def _entries(model: TimeViperNetwork, frames: int, images: bool) -> dict[str, Entry]:
    """The tensors of a file of so many frames."""
    config = model.config
    clip = 1 if images else config.clip_frames
    share = 1 if images else config.vision.frames_per_patch
    # one entry per frame, or per tubelet
    entries = -(-frames // clip) * clip // share
    each = config.visual_tokens(1) if images else config.tokens_per_clip * share // clip
    shape = (1, entries, each, config.merged_size)
    return {"features": Entry(FLOATS[model.dtype], shape), "seconds": Entry("F64", (frames,))}
