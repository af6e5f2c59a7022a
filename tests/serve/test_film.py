"""Facts, plan and frames of a video."""

from __future__ import annotations

import time

import pytest
from PIL import Image

from tests.serve.page_server import COLOURS, colour_of, plain_video
from timeviper_fast import TimeViper
from timeviper_fast.inference.gpus import GPUS
from timeviper_fast.inference.plan import plan
from timeviper_fast.inference.request import Opening
from timeviper_fast.serve.faults import Fault
from timeviper_fast.serve.film import film_of, frames_of, gpu_named
from timeviper_fast.serve.media import MediaRoot


@pytest.fixture(scope="module")
def model():
    return TimeViper.from_pretrained("timeviper-fast/tiny")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    plain_video(root / "video.mp4", fps=2)
    Image.new("RGB", (300, 20), (10, 20, 200)).save(root / "image.png")
    return MediaRoot(root, 10**6)


def later():
    return time.monotonic() + 60


def test_a_frame_is_the_nearest_one_to_its_second(root):
    seconds = [5.4, 0.0, 2.6, 2.1, -7.0, 99.0]
    told = frames_of(root.find("video.mp4"), seconds, 320, Opening(), later())
    # two frames each second, in the order of the request
    assert [frame["second"] for frame in told] == [5.5, 0.0, 2.5, 2.0, 0.0, 5.5]
    for frame, number in zip(told, [5, 0, 2, 2, 0, 5]):
        size, colour = colour_of(frame["image"])
        assert size == (64, 48)
        assert colour == pytest.approx(COLOURS[number], abs=12)


def test_the_longer_side_is_bounded(root):
    (told,) = frames_of(root.find("video.mp4"), [3.0], 32, Opening(), later())
    size, colour = colour_of(told["image"])
    assert size == (32, 24)
    assert colour == pytest.approx(COLOURS[3], abs=12)


def test_an_image_is_a_film_of_one_frame(root, model):
    media = root.find("image.png")
    (told,) = frames_of(media, [12.0], 100, Opening(), later())
    size, colour = colour_of(told["image"])
    assert told["second"] == 0.0
    assert (size, colour) == ((100, 7), pytest.approx((10, 20, 200), abs=12))
    film = film_of(media, Opening(), model, later())
    assert (film["frames"], film["asked"], film["policy"]) == (1, 1, "uniform:1")


def test_a_film_has_its_facts_and_the_plan_for_the_frames_that_are_looked_at(root, model):
    media = root.find("video.mp4")
    film = film_of(media, Opening("uniform:5"), model, later())
    made = film.pop("plan")
    assert film == {
        "start": 0.0,
        "end": 6.0,
        "fps": 2.0,
        "size": (48, 64),
        "frames": 12,
        "asked": 5,
        "policy": "uniform:5",
        "notes": [],
    }
    assert made == plan(model.config, 5, dtype="float32").to_dict()
    every = film_of(media, Opening("uniform:5", stages="none"), model, later())["plan"]
    assert every["tokens"][-1] == every["tokens"][0] > made["tokens"][-1]


def test_the_default_is_what_the_model_does(root, model):
    film = film_of(root.find("video.mp4"), Opening(), model, later())
    assert (film["policy"], film["asked"]) == (model.config.policy, 6)


def test_who_waits_too_long_is_told(root):
    with pytest.raises(Fault, match="time limit") as caught:
        frames_of(root.find("video.mp4"), [0.0], 32, Opening(), time.monotonic() - 1)
    assert caught.value.status == 504


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("Tesla T4", None),
    ],
)
def test_a_driver_s_name_finds_the_planner_s_gpu(driver, name):
    assert gpu_named(driver) == name
    assert name is None or name in GPUS
