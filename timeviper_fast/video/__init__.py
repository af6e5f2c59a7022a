"""A video, wherever it comes from, to frames and their seconds, and frames to pixel values.

    video.py       open a file, directory, array or tensor; read its frames in batches
    file.py        exactly the asked frames of a video file, through PyAV
    images.py      images, one by one or animated, through Pillow
    arrays.py      arrays in memory, and NumPy files
    writer.py      frames to a video file, whole or not at all
    sampling.py    which frames of a video are looked at
    preprocess.py  frames to pixel values, as Pillow resizes them

The names below are public.
"""

from timeviper_fast.errors import VideoError
from timeviper_fast.video.video import Frames, Video, open_video, read_video
from timeviper_fast.video.writer import write_video

__all__ = ["Frames", "Video", "VideoError", "open_video", "read_video", "write_video"]
