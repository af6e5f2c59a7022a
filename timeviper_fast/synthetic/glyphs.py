"""The letters and digits that needles show: bitmaps of 7 rows and 5 columns, drawn for this world.

I and O are left out: they look like 1 and 0. Any two glyphs differ in at least five of 35 cells.
"""

from __future__ import annotations

import numpy as np

__all__ = ["ARROW", "DIGITS", "GLYPHS", "LETTERS", "ROWS", "bitmap"]

LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
DIGITS = "0123456789"
GLYPHS = LETTERS + DIGITS
ROWS = 7
ARROW = ">"

# one row of text per row of cells, seven glyphs side by side
_SHEET = """
.###. ####. .#### ###.. ##### ##### .###.
#...# #...# #.... #..#. #.... #.... #...#
#...# #...# #.... #...# #.... #.... #....
##### ####. #.... #...# ####. ###.. #..##
#...# #...# #.... #...# #.... #.... #...#
#...# #...# #.... #..#. #.... #.... #...#
#...# ####. .#### ###.. ##### #.... .###.

#...# ..### #...# #.... #...# #...# ####.
#...# ...#. #..#. #.... ##.## ##..# #...#
#...# ...#. #.#.. #.... #.#.# ##..# #...#
##### ...#. ##... #.... #.#.# #.#.# #...#
#...# ...#. #.#.. #.... #...# #..## ####.
#...# #..#. #..#. #.... #...# #..## #....
#...# .##.. #...# ##### #...# #...# #....

.###. ####. .#### ##### #...# #...# #...#
#...# #...# #.... ..#.. #...# #...# #...#
#...# #...# #.... ..#.. #...# #...# #...#
#...# ####. .###. ..#.. #...# #...# #.#.#
#.#.# #.#.. ....# ..#.. #...# .#.#. #.#.#
#..#. #..#. ....# ..#.. #...# .#.#. ##.##
.##.# #...# ####. ..#.. .###. ..#.. #...#

#...# #...# ##### .###. ..#.. .###. #####
#...# #...# ....# #..## .##.. #...# ...#.
.#.#. .#.#. ...#. #.#.# #.#.. ....# ..#..
..#.. ..#.. ..#.. #.#.# ..#.. ..##. .###.
.#.#. ..#.. .#... #.#.# ..#.. .#... ....#
#...# ..#.. #.... ##..# ..#.. #.... #...#
#...# ..#.. ##### .###. ##### ##### .###.

...#. ##### ..##. ##### .###. .###. ...
..##. #.... .#... #...# #...# #...# #..
.#.#. ####. #.... ...#. .#.#. #...# ##.
#..#. ....# ####. ...#. ..#.. .#### ###
##### ....# #...# ..#.. .#.#. ....# ##.
...#. #...# #...# ..#.. #...# ...#. #..
...#. .###. .###. ..#.. .###. .##.. ...
"""


def _cut(sheet: str) -> dict[str, np.ndarray]:
    bands = [[line.split() for line in band.split("\n")] for band in sheet.strip().split("\n\n")]
    drawn = [[row[i] for row in band] for band in bands for i in range(len(band[0]))]
    return {
        name: np.array([[cell == "#" for cell in row] for row in rows], np.float32)
        for name, rows in zip(GLYPHS + ARROW, drawn)
    }


_BITMAPS = _cut(_SHEET)


def bitmap(character: str) -> np.ndarray:
    """(7, columns) float32, 1 where a glyph (5 columns) or ARROW (3) has ink."""
    return _BITMAPS[character]
