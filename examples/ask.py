"""Ask a question about a video.

Without arguments a short video is written and a tiny model with random weights is asked about it:
the answer means nothing then.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from timeviper_fast import TimeViper
from timeviper_fast.demo import QUESTION, tiny_model, write_demo_video

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("video", nargs="?", help="a video file; default: one is written")
parser.add_argument("--question", default=QUESTION)
parser.add_argument("--model", help="a model directory or Hub id; default: the random tiny model")
parser.add_argument("--sample", default="fps:1", help="which frames are looked at")
parser.add_argument("--max-new-tokens", type=int, default=32)
arguments = parser.parse_args()

model = TimeViper.from_pretrained(arguments.model) if arguments.model else tiny_model()
with tempfile.TemporaryDirectory() as folder:
    video = arguments.video or write_demo_video(Path(folder) / "video.mp4", seconds=8, fps=8)
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
