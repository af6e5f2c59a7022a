"""Several questions about one video, which is read once.

Without arguments the video is of the synthetic world, which the small model of the package was
trained on. About other videos its answers mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from timeviper_fast import TimeViper
from timeviper_fast.demo import DemoVideo

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("video", nargs="?", help="a video file; default: one is written")
parser.add_argument("--questions", nargs="+", help="default: the demo's")
arguments = parser.parse_args()

demo = DemoVideo()
questions = arguments.questions or [question.text for question in demo.questions]
model = TimeViper.from_pretrained("timeviper-fast/tiny")

with tempfile.TemporaryDirectory() as folder:
    path = arguments.video or demo.write(Path(folder) / "video.mp4")
    session = model.open(path, policy="fps:1")
print(f"{len(session.footage.seconds)} frames, read once")

for question, answer in zip(questions, session.ask(questions, max_new_tokens=16)):
    print(f"{question} -> {answer.text}")
