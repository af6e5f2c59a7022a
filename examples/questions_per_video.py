"""Questions per second, by how many a video has: a session for each video against none.

Without a session every question reads the video again. The videos are of the synthetic world, held
as arrays, so that decoding is no part of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from timeviper_fast import TimeViper, preset
from timeviper_fast.demo import DemoVideo
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.text.byte_tokenizer import byte_tokenizer

NEW = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--videos", type=int, default=3)
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 4, 15])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    films = [DemoVideo(seed, given.frames) for seed in range(given.videos)]
    videos = [np.stack([*film.frames()]) for film in films]
    texts = [question.text for question in films[0].questions]
    print("| model | questions a video | session, questions/s | without, questions/s | ratio |")
    print("|---|---|---|---|---|")
    for name, model in models().items():
        model.ask(videos[0], texts[0], max_new_tokens=NEW)
        for count in given.questions:
            asked = [texts[i % len(texts)] for i in range(count)]
            with_session = rate(lambda v, a=asked, m=model: session(m, v, a), videos, count)
            without = rate(lambda v, a=asked, m=model: afresh(m, v, a), videos, count)
            ratio = with_session / without
            print(f"| {name} | {count} | {with_session:.1f} | {without:.1f} | {ratio:.1f} |")


def models() -> dict[str, TimeViper]:
    """The trained model of the package, and the preset `tiny` with random weights."""
    tiny = TimeViper(preset("tiny"), byte_tokenizer())
    init_weights(tiny, seed=0)
    return {"tiny": tiny, "embedded": TimeViper.from_pretrained("timeviper-fast/tiny")}


def session(model: TimeViper, video: np.ndarray, asked: list[str]) -> None:
    model.open(video, policy="fps:1").ask(asked, max_new_tokens=NEW)


def afresh(model: TimeViper, video: np.ndarray, asked: list[str]) -> None:
    for question in asked:
        model.ask(video, question, policy="fps:1", max_new_tokens=NEW)


def rate(work: Callable[[np.ndarray], None], videos: list[np.ndarray], count: int) -> float:
    """Questions per second over all videos."""
    begin = time.perf_counter()
    for video in videos:
        work(video)
    return count * len(videos) / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
