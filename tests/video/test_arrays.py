"""Arrays, tensors and their files as videos."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.video.common import numbers, picture
from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video, read_video


def test_arrays_tensors_and_their_files(tmp_path: Path) -> None:
    array = np.stack([picture(i) for i in range(9)])
    np.save(tmp_path / "a.npy", array)
    seconds = np.array([0.0, 0.1, 0.5, 1, 1.1, 3, 4, 4.5, 9])
    np.savez(tmp_path / "a.npz", frames=array, seconds=seconds)
    np.savez(tmp_path / "plain.npz", frames=array)
    for source in (array, torch.tensor(array), tmp_path / "a.npy", tmp_path / "plain.npz"):
        video = open_video(source, fps=4)
        assert numbers(video.frames([0, 3, 8])) == [0, 3, 8]
        assert video.seconds[-1] == 2
        assert video.duration == 2.25
    video = open_video(tmp_path / "a.npz")
    assert video.seconds.tolist() == seconds.tolist()
    assert video.sample("fps:1").tolist() == [0, 3, 4, 5, 6, 7, 8]
    assert read_video(array).rgb.dtype == torch.uint8


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pixels": np.zeros(3)}, "must hold an array named frames, got pixels"),
        ({}, "must hold an array named frames, got none"),
        (
            {"frames": np.zeros((2, 4, 4))},
            r"frames must be \(frames, height, width, 3\), got shape",
        ),
        ({"frames": np.zeros((0, 4, 4, 3), np.uint8)}, r"got shape \(0, 4, 4, 3\)"),
        ({"frames": np.zeros((2, 4, 4, 3))}, "frames must be of dtype uint8, got float64"),
        ({"seconds": np.zeros(3)}, r"seconds must have one time per frame \(2\), got \(3,\)"),
        ({"seconds": np.array(["0", "later"])}, "seconds must be numbers, got dtype <U5"),
        ({"seconds": np.array([0j, 1j])}, "seconds must be numbers, got dtype complex128"),
        ({"seconds": np.float64(1)}, r"seconds must have one time per frame \(2\), got \(\)"),
        ({"seconds": np.array([1.0, 1.0])}, "seconds must be finite and ascend"),
        ({"seconds": np.array([1.0, np.nan])}, "seconds must be finite and ascend"),
    ],
)
def test_arrays_are_refused_by_name(tmp_path: Path, arrays: dict, words: str) -> None:
    path = tmp_path / "video.npz"
    frames = {"frames": np.zeros((2, 4, 4, 3), np.uint8)} if "seconds" in arrays else {}
    np.savez(path, **frames, **arrays)
    with pytest.raises(VideoError, match=f"^{re.escape(str(path))}: .*{words}"):
        open_video(path)
    if frames:
        with pytest.raises(ValueError, match="fps must be left out where the file has seconds"):
            open_video(path, fps=1)


GOOD = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "the list must hold at least one frame, got none"),
        (
            [GOOD, "1.png"],
            r"frame 1 must be \(height, width, 3\) uint8, or a Pillow image, got str",
        ),
        ([GOOD, GOOD[..., 0]], r"frame 1 must be .*, got shape \(4, 6\) uint8"),
        ([GOOD / 255], r"frame 0 must be .*, got shape \(4, 6, 3\) float64"),
        ([torch.zeros(3, 4, 6)], r"frame 0 must be .*, got shape \(3, 4, 6\) float32"),
        ([torch.tensor(GOOD).to_sparse()], "frame 0 must be a dense tensor, got layout sparse_coo"),
        (
            [torch.tensor(GOOD, device="meta")],
            "frame 0 must be a dense tensor, got one on the meta",
        ),
        ([GOOD, GOOD[:2]], "frame 1 must be 6x4 as the first one, got 6x2"),
    ],
)
def test_lists_are_refused_by_frame(frames: list, words: str) -> None:
    with pytest.raises(VideoError, match=f"^frames: {words}"):
        open_video(frames)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x.to_sparse(), "a dense tensor, got layout sparse_coo"),
        (lambda x: torch.nested.nested_tensor(list(x)), "a dense tensor, got a nested one"),
        (lambda x: x.to("meta"), "a dense tensor, got one on the meta device, which has no values"),
        (lambda x: x.bfloat16(), "of dtype uint8, got bfloat16"),
    ],
)
def test_a_tensor_that_numpy_cannot_hold(make: Callable, words: str) -> None:
    with pytest.raises(VideoError, match=f"^frames: frames must be {words}$"):
        open_video(make(torch.zeros(2, 4, 6, 3, dtype=torch.uint8)))
