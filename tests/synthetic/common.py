"""A reader of signs that compares pixels with the bitmaps; it shares no code with the model."""

from __future__ import annotations

import numpy as np

from timeviper_fast.synthetic.glyphs import DIGITS, LETTERS
from timeviper_fast.synthetic.shapes import cells


def thumbnails(frames):
    """(n, 48, 48, 3) uint8 -> (n, 108) float32: means of 8 x 8 pixels, as the frames are seen."""
    areas = frames.reshape(len(frames), 6, 8, 6, 8, 3).astype(np.float32)
    return areas.mean((2, 4)).reshape(len(frames), -1)


def nearest(points):
    """Distance of each point to its nearest neighbour, over all pairs, in float64."""
    points = points.astype(np.float64)
    squares = (points**2).sum(1)
    distances = squares[:, None] + squares - 2 * points @ points.T
    np.fill_diagonal(distances, np.inf)
    return np.sqrt(np.maximum(distances.min(1), 0))


def read_sign(frame):
    """The sign's text, by the best match over all places and texts: (48, 48, 3) uint8 -> str."""
    ink = (255 - frame.astype(np.float32).mean(-1)) / 255
    windows = np.lib.stride_tricks.sliding_window_view(ink, (18, 26)).reshape(-1, 18 * 26)
    windows = windows - windows.mean(1, keepdims=True)
    texts = [a + b for a in LETTERS for b in DIGITS]
    patterns = np.stack([_padded(text) for text in texts])
    patterns -= patterns.mean(1, keepdims=True)
    scores = (windows @ patterns.T) / np.linalg.norm(patterns, axis=1)
    return texts[int(scores.max(0).argmax())]


def _padded(text):
    """(468,) float32: the text's ink at 2 pixels per cell, with 2 pixels of plate around it."""
    return np.pad(cells(text).repeat(2, 0).repeat(2, 1), 2).ravel()
