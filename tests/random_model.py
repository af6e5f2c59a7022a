"""The tiny model with random weights, and a video file of a moving square, under short names."""

from timeviper_fast.demo import tiny_model
from timeviper_fast.demo import write_demo_video as square_video

__all__ = ["square_video", "tiny_model"]
