"""Ask a question about a video.

Without arguments a video of the synthetic world is written, and the small model of the package
reads its sign. About other videos that model's answers mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from timeviper_fast import TimeViper
from timeviper_fast.demo import DemoVideo

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("video", nargs="?", help="a video file; default: one is written")
parser.add_argument("--question", default="What does the sign say?")
parser.add_argument("--model", default="timeviper-fast/tiny", help="a model directory or Hub id")
parser.add_argument("--sample", default="fps:1", help="which frames are looked at")
parser.add_argument("--max-new-tokens", type=int, default=32)
arguments = parser.parse_args()

model = TimeViper.from_pretrained(arguments.model)
with tempfile.TemporaryDirectory() as folder:
    video = arguments.video or DemoVideo().write(Path(folder) / "video.mp4")
    answer = model.ask(
        video,
        arguments.question,
        policy=arguments.sample,
        max_new_tokens=arguments.max_new_tokens,
    )

print(answer.text)
print(f"frames looked at: {len(answer.frame_seconds)}")
for stage in answer.stages:
    print(f"before layer {stage.layer}: {stage.before} -> {stage.after} vision tokens")
