"""Read videos from any source as frames with their times, and turn frames into pixel values.

    video.py         open a video of any kind; read its frames in batches
    ahead.py         decode in a background thread, ahead of the reader
    source.py        what a video may be given as, and the reader of each
    file.py          decode exactly the requested frames of a video file, with PyAV
    bound.py         bounds for videos that strangers bring
    container.py     open a video file with PyAV, and choose its video stream
    playlist.py      refuse files that only name the pieces of a video
    packets.py       the packets of a file as columns of numbers
    continuity.py    losses and joins of transport streams
    sample_table.py  the same from an mp4 file's own table, without reading them
    boxes.py         the boxes of mp4 files
    ending.py        whether a file is cut off
    timeline.py      frames in display order with their times
    stamps.py        mend flawed time stamps
    index.py         which packets must be decoded for which frames
    decode.py        decode them, and tell sound pictures from damaged ones
    orientation.py   turn and mirror pictures as a display matrix says
    directory.py     which files of a directory are frames
    images.py        read image files, single or animated, with Pillow
    arrays.py        arrays in memory, and NumPy files
    stream.py        open a video that goes on while it is read
    growing.py       a file that is being written
    film.py          decode a film as it comes
    arriving.py      a directory that fills with images
    pace.py          choose frames as they come
    writer.py        write frames to a video file, completely or not at all
    times.py         times as mm:ss, and the frames between two of them
    sampling.py      policies that choose which frames of a video are used
    preprocess.py    frames to pixel values, as Pillow resizes them

The names below are public.
"""

from timeviper_fast.errors import VideoError
from timeviper_fast.video.stream import FrameStream, open_stream
from timeviper_fast.video.video import Frames, Progress, Video, open_video, read_video
from timeviper_fast.video.writer import write_video

__all__ = [
    "FrameStream",
    "Frames",
    "Progress",
    "Video",
    "VideoError",
    "open_stream",
    "open_video",
    "read_video",
    "write_video",
]
