"""Merged features of a frozen vision encoder, cached on disk, so that each video is encoded once.

An entry's key covers everything that its values depend on: the media file's path, size and
modification time, the frames' numbers, the encoder's weights, and the vision configuration.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from timeviper_fast.dataset.files import media_key, write_whole
from timeviper_fast.dataset.sample import Sample
from timeviper_fast.errors import ArgumentError
from timeviper_fast.model.model import TimeViperNetwork

__all__ = ["FeatureCache", "encode_features"]

# Frames per call of the encoder. It is fixed, so that a video has the same features in every run.
_BATCH = 64


@torch.no_grad()
def encode_features(model: TimeViperNetwork, sample: Sample) -> Tensor:
    """Merged features (frames, n, vision_size) of a sample's pixels, on the model's device.

    Each part of a joined sample is encoded separately, so its features are the same as alone. A
    part of one frame is an image.

    Raises:
        ArgumentError: the sample has no pixels.
    """
    if sample.pixels is None:
        raise ArgumentError("encode_features", "sample", "have pixels", sample.name or "none")
    clip = model.config.clip_frames
    batch = max(_BATCH // clip, 1) * clip
    sizes = [frames for _, frames in sample.parts] or [sample.frames]
    merged = []
    for part in sample.pixels.split(sizes):
        images = len(part) == 1
        for frames in part.split(batch):
            features = model.vision(frames.to(model.device, model.dtype), images)
            merged.append(model.projector.merge(features, images))
    return torch.cat(merged)


class FeatureCache:
    """A cache of merged features on disk.

    Args:
        folder: the cache's folder.
        model: `vision_fingerprint` of the model.
    """

    def __init__(self, folder: str | os.PathLike[str], model: str) -> None:
        self.folder, self.model = Path(folder).expanduser(), model

    def key(self, path: Path, positions: Sequence[int], image_size: int) -> str:
        """The key of an entry: the frames at `positions` of a media file, at an image size.

        Raises:
            OSError: the file does not exist.
        """
        told = (media_key(path), tuple(positions), image_size, self.model)
        return sha256(repr(told).encode()).hexdigest()

    def read(self, key: str) -> Tensor | None:
        """An entry (frames, n, vision_size) on the CPU; None if it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                features = file.get_tensor("features")
                sound = (file.metadata() or {}).get("sha256") == sha256(
                    _bytes(features)
                ).hexdigest()
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            sound, reason = False, str(error)
        else:
            reason = "its checksum does not match"
        if not sound:
            warnings.warn(f"{path}: it is encoded again, for {reason}", stacklevel=2)
            return None
        return features

    def write(self, key: str, features: Tensor) -> None:
        """Write an entry; it appears complete or not at all."""
        from safetensors.torch import save

        features = features.detach().cpu().contiguous()
        checksum = {"sha256": sha256(_bytes(features)).hexdigest()}
        write_whole(self._path(key), save({"features": features}, checksum))

    def complete(self, model: TimeViperNetwork, sample: Sample) -> Sample:
        """Replace the sample's pixels by features, which are encoded, and cached if it has parts.

        A sample without pixels is returned unchanged.
        """
        if sample.pixels is None:
            return sample
        features = encode_features(model, sample)
        if sample.parts:
            for (key, _), part in zip(
                sample.parts, features.split([frames for _, frames in sample.parts])
            ):
                self.write(key, part)
        return replace(sample, pixels=None, features=features)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
