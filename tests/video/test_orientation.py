"""Turned and mirrored pictures stand upright, whichever of the eight ways a file states."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from PIL.ExifTags import Base

from tests.video.common import HEIGHT, WIDTH, number_of, picture
from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video, read_video, write_video
from timeviper_fast.video.orientation import Orientation, orientation_of

SIGNS = (1, -1)
# (a, b, c, d): the pixel at (x, y) is shown at (a x + c y, b x + d y)
EIGHT = [(a, 0, 0, d) for a, d in product(SIGNS, SIGNS)]
EIGHT += [(0, b, c, 0) for b, c in product(SIGNS, SIGNS)]
# what EXIF's orientations 1 to 8 do to a pixel, by the words of the standard: where the stored
# first row and first column are shown
EXIF = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip
# an L in a corner: no turn and no mirror image of it equals it
NUMBER = 0b0000_0000_0001_0111


def shown(stored: np.ndarray, turn: tuple[int, ...]) -> np.ndarray:
    """The picture as a loop over its pixels moves them."""
    a, b, c, d = turn
    places = {
        (a * x + c * y, b * x + d * y): stored[y, x] for y, x in np.ndindex(*stored.shape[:2])
    }
    left, top = min(x for x, _ in places), min(y for _, y in places)
    right, bottom = max(x for x, _ in places), max(y for _, y in places)
    return np.stack(
        [[places[x, y] for x in range(left, right + 1)] for y in range(top, bottom + 1)]
    )


def set_matrix(path: Path, matrix: tuple[float, ...]) -> None:
    """Write a, b, c, d in the track header of an MP4 file."""
    a, b, c, d = (round(value * 0x10000) for value in matrix)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    for place, value in enumerate([a, b, 0, c, d, 0, 0, 0, 0x40000000]):
        data[start + 4 * place : start + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, [picture(NUMBER)] * 2)
    return path.read_bytes()


@pytest.mark.parametrize("turn", EIGHT)
def test_every_display_matrix_is_applied(clip: bytes, tmp_path: Path, turn: tuple) -> None:
    path = tmp_path / "turned.mp4"
    path.write_bytes(clip)
    plain = read_video(path).rgb[0].numpy()
    assert number_of(read_video(path).rgb[0]) == NUMBER
    set_matrix(path, turn)
    video = open_video(path)
    want = shown(plain, turn)
    assert video.size == want.shape[:2] == ((HEIGHT, WIDTH) if turn[0] else (WIDTH, HEIGHT))
    (frames,) = video.frames([1])
    assert np.array_equal(frames.rgb[0].numpy(), want)


@pytest.mark.parametrize(
    ("turn", "degrees"), [((0.8, 0.6, -0.6, 0.8), "36.87"), ((1, 0, 0.5, 1), "0")]
)
def test_other_turns_are_refused_in_one_sentence(
    clip: bytes, tmp_path: Path, turn: tuple, degrees: str
) -> None:
    path = tmp_path / "askew.mp4"
    path.write_bytes(clip)
    set_matrix(path, turn)
    words = f"askew.mp4: its display matrix turns the picture by {degrees} degrees or shears it"
    with pytest.raises(VideoError, match=words) as refusal:
        open_video(path)
    assert "\n" not in str(refusal.value)


def test_rounding_and_scale_do_not_matter() -> None:
    assert orientation_of([65536, 3, 0, -3, 65536]) == Orientation()
    assert orientation_of([2, -65536, 0, 131072, 1]) == Orientation(True, True, False)
    # a matrix of zeros states nothing
    assert orientation_of([0] * 9) == Orientation()


SUFFIXES = ["jpg", "png", "webp", "tif", *(["avif"] if features.check("avif") else [])]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    options = {"quality": 100} | ({"lossless": True} if suffix == "webp" else {})
    plain = None
    for number, turn in EXIF.items():
        exif = Image.Exif()
        exif[Base.Orientation] = number
        path = tmp_path / f"{number}.{suffix}"
        Image.fromarray(picture(NUMBER)).save(path, exif=exif, **options)
        seen = read_video(path).rgb[0].numpy()
        plain = seen if plain is None else plain
        assert np.array_equal(seen, shown(plain, turn)), number
