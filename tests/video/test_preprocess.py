"""Resizing against Pillow itself, bit for bit, and the normalisation around it."""

from __future__ import annotations

import sys

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageOps

from tests.goldens import golden, manifest
from timeviper_fast.config import VisionConfig
from timeviper_fast.video import preprocess
from timeviper_fast.video.preprocess import resize_bicubic, resize_float, resize_normalize

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def noise(frames: int, height: int, width: int, *, extreme: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 10_007 + width)
    rgb = torch.randint(0, 256, (frames, height, width, 3), generator=generator, dtype=torch.uint8)
    return (rgb > 127).to(torch.uint8) * 255 if extreme else rgb


def pillow(rgb: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pillow's two passes, asked for one at a time: Pillow 13 may swap them in a single resize."""
    frames = []
    for frame in rgb.numpy():
        wide = Image.fromarray(frame).resize((width, frame.shape[0]), Image.Resampling.BICUBIC)
        frames.append(np.array(wide.resize((width, height), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


@pytest.fixture(params=["with Pillow", "without Pillow"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What resizes frames on a CPU: Pillow, or PyTorch where Pillow is not installed."""
    if request.param == "without Pillow":
        monkeypatch.setattr(preprocess, "_pillow", lambda: None)
    return request.param


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (360, 640, 384),
        (1080, 1920, 384),
        (64, 96, 32),
        (97, 61, 384),
        (385, 383, 384),
        (7, 500, 224),
        (384, 384, 384),
        (1, 1, 16),
        (1, 900, 30),
        (2000, 3, 10),
        (17, 13, 1),
    ],
)
def test_resize_is_pillows_bit_for_bit(height: int, width: int, size: int, extreme: bool) -> None:
    rgb = noise(2 if height * width < 10**6 else 1, height, width, extreme=extreme)
    assert torch.equal(resize_bicubic(rgb, size, size), pillow(rgb, size, size))


@pytest.mark.usefixtures("where")
def test_resize_of_a_landscape_frame_is_pillows_in_one_call() -> None:
    rgb = noise(1, 270, 480)
    image = Image.fromarray(rgb[0].numpy()).resize((384, 384), Image.Resampling.BICUBIC)
    assert torch.equal(
        resize_bicubic(rgb, 384, 384)[0].permute(1, 2, 0), torch.tensor(np.array(image))
    )


@pytest.mark.parametrize(("height", "width"), [(640, 360), (500, 400)])
def test_one_call_of_pillow_13_runs_a_portrait_frame_vertically_first(
    height: int, width: int
) -> None:
    """The same two passes in the other order, and far from the order kept here on white noise."""
    rgb = noise(1, height, width)
    image = Image.fromarray(rgb[0].numpy())
    one_call = torch.tensor(np.array(image.resize((384, 384), Image.Resampling.BICUBIC)))
    # transposed, so that the pass along the height is the first one
    vertically_first = pillow(rgb.transpose(1, 2), 384, 384).transpose(2, 3)[0].permute(1, 2, 0)
    ours = resize_bicubic(rgb, 384, 384)[0].permute(1, 2, 0)
    swaps = int(PIL.__version__.split(".")[0]) >= 13
    assert torch.equal(one_call, vertically_first if swaps else ours)
    assert int((vertically_first.int() - ours.int()).abs().max()) > 10


@pytest.mark.usefixtures("where")
def test_resize_to_a_rectangle_and_of_strided_or_no_frames() -> None:
    rgb = noise(4, 50, 70)
    assert torch.equal(resize_bicubic(rgb, 31, 90), pillow(rgb, 31, 90))
    assert torch.equal(resize_bicubic(rgb[::2], 31, 90), pillow(rgb[::2], 31, 90))
    flipped = rgb.transpose(1, 2)
    assert torch.equal(resize_bicubic(flipped, 31, 90), pillow(flipped, 31, 90))
    assert resize_bicubic(rgb[:0], 31, 90).shape == (0, 3, 31, 90)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_the_frames_and_keep_their_order(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = noise(7, 30, 50)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(resize_bicubic(rgb, 20, 20), pillow(rgb, 20, 20))


def test_without_pillow_frames_are_resized_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert preprocess._pillow() is None
    assert resize_bicubic(noise(1, 9, 9), 4, 4).shape == (1, 3, 4, 4)


def test_normalise_is_scale_shift_divide() -> None:
    rgb = noise(2, 40, 60)
    mean, std = IMAGENET
    pixels = resize_normalize(rgb, 32, mean, std)
    assert pixels.dtype == torch.float32
    assert pixels.shape == (2, 3, 32, 32)
    truth = pillow(rgb, 32, 32).double() / 255
    for channel in range(3):
        expected = (truth[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(pixels[:, channel].double(), expected, atol=1e-6, rtol=0)
    assert resize_normalize(torch.full((1, 4, 4, 3), 255, dtype=torch.uint8), 8).unique() == 1


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (33, 33)])
def test_crop_keeps_the_aspect_ratio_and_cuts_the_centre(height: int, width: int) -> None:
    rgb = noise(1, height, width)
    shorter = min(height, width)
    tall, wide = int(24 * height / shorter), int(24 * width / shorter)
    whole = pillow(rgb, tall, wide)
    top, left = round((tall - 24) / 2), round((wide - 24) / 2)
    expected = whole[:, :, top : top + 24, left : left + 24].float() / 127.5 - 1
    torch.testing.assert_close(resize_normalize(rgb, 24, strategy="crop"), expected)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (33, 33)])
def test_letterbox_pads_with_the_mean_colour(height: int, width: int) -> None:
    rgb = noise(1, height, width)
    mean, std = IMAGENET
    side = max(height, width)
    colour = tuple(int(255 * m) for m in mean)
    image = ImageOps.pad(Image.fromarray(rgb[0].numpy()), (side, side), color=colour)
    expected = pillow(torch.tensor(np.array(image))[None], 24, 24).float() / 255
    expected = (expected - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    actual = resize_normalize(rgb, 24, mean, std, strategy="letterbox")
    torch.testing.assert_close(actual, expected)


FRAME = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rgb": FRAME[0]}, r"rgb must be \(frames, height, width, 3\), got shape \(4, 4, 3\)"),
        ({"rgb": FRAME[:, :0]}, r"rgb must be \(frames, .*, got shape \(1, 0, 4, 3\)"),
        ({"rgb": FRAME.float()}, "rgb must be of dtype uint8, got float32"),
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
        ({"mean": (0.5,)}, r"mean must have one value per channel \(3\), got \(0.5,\)"),
        ({"std": (0.5, 0.5)}, r"std must have one value per channel \(3\), got"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be above 0, got"),
        (
            {"strategy": "zoom"},
            "strategy must be one of naive, crop, letterbox, pillow13, float, float_aspect, got 'zoom'",
        ),
    ],
)
def test_arguments_are_refused_by_name(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"resize_normalize: {words}"):
        resize_normalize(**{"rgb": FRAME, "size": 4, **arguments})


def test_resize_refuses_an_empty_size() -> None:
    with pytest.raises(ValueError, match="height and width must be at least 1 pixel, got 0, 4"):
        resize_bicubic(FRAME, 0, 4)


def test_pixels_of_videochat_flash(where: str) -> None:
    """Frames of 152 x 80 stretched to 144 x 144, with ImageNet's mean and deviation."""
    recorded = golden("vcf_generate")
    pixels = resize_normalize(recorded["frames"], 144, *IMAGENET, "pillow13")
    top, strided = recorded["pixel_values.frame0_top"], recorded["pixel_values.strided"]
    torch.testing.assert_close(pixels[0, :, :36], top, rtol=0, atol=1e-6)
    torch.testing.assert_close(pixels[:, :, ::9, ::7], strided, rtol=0, atol=1e-6)
    sums = pixels.double().sum((1, 2, 3))
    torch.testing.assert_close(sums, recorded["pixel_values.sum_per_frame"], rtol=0, atol=1e-2)


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="the order is Pillow 13's")
@pytest.mark.parametrize(
    ("height", "width"),
    [(60, 49), (60, 51), (41, 39), (40, 20), (30, 14), (90, 160), (120, 79), (120, 81)],
)
def test_the_order_of_passes_is_pillow_13s(where: str, height: int, width: int) -> None:
    """To a square of 40 the height goes first if it shrinks by over twice as many pixels."""
    rgb = noise(1, height, width, extreme=True)
    one_call = Image.fromarray(rgb[0].numpy()).resize((40, 40), Image.Resampling.BICUBIC)
    pixels = resize_normalize(rgb, 40, (0, 0, 0), (1, 1, 1), "pillow13")
    assert torch.equal(
        (pixels[0] * 255).round().byte().permute(1, 2, 0), torch.tensor(np.array(one_call))
    )


CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize("case", range(4))
def test_float_resize_equals_the_recorded_one(case: int) -> None:
    stored = golden("nemotron_vl_resize")
    rgb, want = stored[f"case{case}.frames"].permute(0, 2, 3, 1), stored[f"case{case}.square24"]
    got = resize_normalize(rgb, 24, *CLIP, "float")
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    aspect = stored[f"case{case}.omni"]
    row = manifest("nemotron_vl_resize")["cases"][case]
    config = VisionConfig(
        kind="radio", image_size=32, patch_size=4, position_side=8, resize="float_aspect"
    ).seeing(row["rows"], row["cols"])
    got = resize_normalize(rgb, config.frame_size, *CLIP, config.resize)
    torch.testing.assert_close(got, aspect, rtol=0, atol=2e-6)
    # the 8-bit resize that other models need is another one
    assert (resize_normalize(rgb, 24, *CLIP) - want).abs().max() > 1e-3


def test_float_resize_keeps_the_overshoot_and_the_frames_apart() -> None:
    rgb = noise(3, 12, 20, extreme=True)
    got = resize_float(rgb, 30, 40)
    assert got.shape == (3, 3, 30, 40)
    assert got.min() < 0
    assert got.max() > 255
    assert torch.equal(got[1:2], resize_float(rgb[1:2], 30, 40))
    with pytest.raises(ValueError, match="size must be a height and a width that keep the frames'"):
        resize_normalize(rgb, 24, strategy="float_aspect")
    with pytest.raises(ValueError, match=r"size must be that of a square, got \(24, 32\)"):
        resize_normalize(rgb, (24, 32))
    with pytest.raises(ValueError, match="resize_float: height and width must be at least 1 pixel"):
        resize_float(rgb, 0, 4)
