"""Files of many videos: their bytes are known before, and a video that ends processes is given up."""

from __future__ import annotations

import os
from collections import namedtuple

import pytest

from tests.corpus.common import OPTIONS, corpus
from tests.random_model import tiny_model
from timeviper_fast.corpus.attempts import hashed
from timeviper_fast.corpus.library import Library
from timeviper_fast.errors import ArgumentError


@pytest.fixture
def library(tmp_path):
    corpus(tmp_path)
    return Library(tiny_model(), tmp_path / "library", OPTIONS.opening)


def targets(library, folder, *numbers):
    return [
        (str(folder / f"{i}.npy"), library.folder / f"{i}.npy.{library.level}") for i in numbers
    ]


@pytest.mark.parametrize("level", ["session", "features"])
@pytest.mark.parametrize("stages", [None, "none"])
def test_planned_bytes_are_those_of_the_file(library, tmp_path, level, stages):
    opening = type(OPTIONS.opening)("fps:1", chunk=64, stages=stages)
    library.level, library.opening = level, opening
    ((video, target),) = targets(library, tmp_path, 0)
    planned = library.planned(video)
    library.write(video, target)
    size = target.stat().st_size
    # text tokens of any template, and the header
    assert size <= planned <= size + 8192 + 64 * 4 * 1024


def test_a_disk_that_is_too_small_is_refused_before_any_video_is_read(
    library, tmp_path, monkeypatch
):
    files = targets(library, tmp_path, 0, 1)
    need = sum(library.planned(video) for video, _ in files)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, need))
    library.expect_room([*files, (str(tmp_path / "broken.mp4"), tmp_path / "x")])
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, need - 1))
    with pytest.raises(
        ArgumentError, match=r"into must have room for 2 files of 0\.00 GB together"
    ):
        library.expect_room(files)
    assert not library.folder.exists()
    # files that are there need no more room
    library.write(*files[0])
    library.expect_room(files)


def test_a_video_whose_process_ended_twice_is_given_up_once(library, tmp_path):
    ((video, target),) = targets(library, tmp_path, 0)
    mark = hashed(library.folder / ".attempts", target.name, ".attempts")
    mark.parent.mkdir(parents=True)
    mark.write_bytes(b"xx")
    with pytest.raises(ValueError, match="ended 2 times while it read this video; once more"):
        library.write(video, target)
    assert library.write(video, target).startswith("6 frames")
    library.close()
    assert os.listdir(library.folder) == [target.name]


def test_a_video_that_another_process_reads_is_left_to_it(library, tmp_path):
    ((video, target),) = targets(library, tmp_path, 0)
    with library._attempts.claim(target.name):
        assert library.write(video, target) == "another process writes it"
        library.close()
    assert library.write(video, target).startswith("6 frames")
    assert library.write(video, target) == "it is there already"
