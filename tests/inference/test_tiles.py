"""An image as tiles: which grid, where its pixels and its tokens go."""

from __future__ import annotations

import pytest
import torch

from tests.goldens import golden, manifest
from timeviper_fast.inference.tiles import best_grid, cut_tiles, tile_order


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(200, 300, (2, 3)), (100, 100, (1, 1)), (1000, 200, (6, 2)), (144, 289, (1, 3))],
)
def test_the_grid_shows_most_and_wastes_least(height, width, grid):
    assert best_grid(height, width, 144) == grid


def test_tiles_are_cut_row_by_row_behind_the_whole_image():
    rgb = torch.zeros(16, 24, 3, dtype=torch.uint8)
    for i in range(6):
        y, x = divmod(i, 3)
        rgb[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 40 * i
    crops = cut_tiles(rgb, 8, 2, 3)
    assert crops.shape == (7, 8, 8, 3)
    assert [int(crop[4, 4, 0]) for crop in crops[1:]] == [0, 40, 80, 120, 160, 200]


def test_order_of_the_tokens_is_videochat_flashs():
    recorded = golden("vcf_generate")["tiles.source_of_position"].flatten()
    columns, rows = manifest("vcf_generate")["tiles"]["grid_wh"]
    assert torch.equal(tile_order(rows, columns, 64), recorded.long())
    with pytest.raises(ValueError, match="be a square number for tiles, got 48"):
        tile_order(1, 1, 48)
