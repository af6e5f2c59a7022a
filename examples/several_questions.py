"""Several questions about one video, whose frames are encoded once.

Without arguments the video is of the synthetic world, which the small model of the package was
trained on. About other videos its answers mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from timeviper_fast import TimeViper
from timeviper_fast.demo import DemoVideo
from timeviper_fast.text.prompt import build_prompt, stop_token_ids
from timeviper_fast.video import open_video
from timeviper_fast.video.preprocess import resize_normalize

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("video", nargs="?", help="a video file; default: one is written")
parser.add_argument("--questions", nargs="+", help="default: the demo's")
arguments = parser.parse_args()

demo = DemoVideo()
questions = arguments.questions or [question.text for question in demo.questions]
model = TimeViper.from_pretrained("timeviper-fast/tiny")
vision, template = model.config.vision, model.config.template
stop_ids = stop_token_ids(model.tokenizer, template)

with tempfile.TemporaryDirectory() as folder:
    path = arguments.video or demo.write(Path(folder) / "video.mp4")
    with open_video(path) as video:
        visual = torch.cat(
            [
                model.encode(
                    resize_normalize(
                        frames.rgb, vision.image_size, vision.image_mean, vision.image_std
                    )
                )
                for frames in video.frames(video.sample("fps:1"))
            ]
        )
print(f"{visual.shape[0]} frames of {visual.shape[1]} tokens, encoded once")

for question in questions:
    prompt = build_prompt(model.tokenizer, question, template=template)
    before, after = torch.tensor([prompt.before]), torch.tensor([prompt.after])
    generation = model.generate(before, visual, after, max_new_tokens=16, stop_ids=stop_ids)
    text = model.tokenizer.decode(generation.token_ids[0], skip_special_tokens=True)
    print(f"{question} -> {text.strip()}")
