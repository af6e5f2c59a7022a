"""Identical and near frames are found among all pairs, with any block size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from timeviper_fast.evaluation.alike import find_alike, thumbnails


def distances(thumbs):
    """The distances of all pairs, in float64."""
    return torch.cdist(
        thumbs.double(), thumbs.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )


@pytest.fixture(scope="module")
def frames():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (300, 3, 12, 18), generator=generator, dtype=torch.uint8)


def test_thumbnails_are_means_of_areas(frames):
    thumbs = thumbnails(frames)
    assert thumbs.shape == (300, 108)
    wanted = np.rint(frames[7, 1, 2:4, 3:6].numpy().mean())
    assert thumbs[7].view(3, 6, 6)[1, 1, 1] == wanted


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_equal_and_near_frames_are_counted(frames, block):
    thumbs = thumbnails(frames)
    thumbs[50] = thumbs[280]
    thumbs[60] = thumbs[61]
    thumbs[60, 0] += 1
    found = find_alike(thumbs, block)
    assert (found.frames, found.identical, found.near, found.nearest) == (300, 2, 4, 0)
    if block > 256:
        pairs = distances(thumbs)[:256]
        pairs = pairs[~torch.eye(300, dtype=torch.bool)[:256]]
        assert found.median == pytest.approx(float(pairs.median()), rel=1e-6)


def test_the_largest_distance_is_exact():
    """Black and white have the largest distance, and rounding must not change it."""
    thumbs = torch.zeros(3, 108)
    thumbs[1], thumbs[2] = 255, 254
    found = find_alike(thumbs)
    assert found.identical == 0
    assert found.nearest == pytest.approx(108**0.5, rel=1e-7)


def test_it_is_told_in_a_sentence(frames):
    assert str(find_alike(thumbnails(frames))).startswith("300 frames by 6x6 thumbnails: 0.0% have")
