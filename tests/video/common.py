"""Pictures that carry their frame's number as 16 black or white blocks, which survive compression."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from timeviper_fast.video import Frames

av = pytest.importorskip("av")
HEIGHT, WIDTH = 48, 64


def picture(number: int) -> np.ndarray:
    bits = (number >> np.arange(16)) & 1
    blocks = np.where(bits, 225, 30).astype(np.uint8).reshape(4, 4)
    grey = np.kron(blocks, np.ones((HEIGHT // 4, WIDTH // 4), np.uint8))
    return np.repeat(grey[..., None], 3, axis=-1)


def number_of(rgb: torch.Tensor) -> int:
    blocks = rgb.double().mean(-1).view(4, HEIGHT // 4, 4, WIDTH // 4)[:, 4:-4, :, 4:-4]
    bits = blocks.mean((1, 3)).flatten() > 127
    return int((bits * 2 ** torch.arange(16)).sum())


def numbers(batches: Iterator[Frames]) -> list[int]:
    return [number_of(frame) for frames in batches for frame in frames.rgb]


def pictures(count: int) -> Iterator[np.ndarray]:
    return (picture(number) for number in range(count))


def damage(path: Path, target: Path, packet: int) -> Path:
    """A copy of an mp4 file with the payload of one packet overwritten."""
    with av.open(str(path)) as container:
        found = [p for p in container.demux(container.streams.video[0]) if p.size][packet]
        start, size = found.pos, found.size
    data = bytearray(path.read_bytes())
    data[start + 5 : start + size] = bytes(size - 5)
    target.write_bytes(data)
    return target


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        sound.sample_rate = 16_000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def lose(path: Path, target: Path, number: int) -> Path:
    """A copy of a transport stream without the first 188 bytes of one frame's data."""
    data = path.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    # the video's identifier is 256; the bit 64 marks the first packet of a frame
    starts = [at for at, p in enumerate(packets) if (p[1] & 31) << 8 | p[2] == 256 and p[1] & 64]
    target.write_bytes(b"".join(p for at, p in enumerate(packets) if at != starts[number]))
    return target
