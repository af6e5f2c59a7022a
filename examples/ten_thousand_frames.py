"""A long video, read once and asked ten questions: seconds, memory and bytes.

The video is of the synthetic world at one frame per second, which the small model of the package
was trained on. The session is saved, and a new process loads it and asks again. In a folder of
your own the video is kept, so that a second run does not measure how it was written.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from timeviper_fast import TimeViper
from timeviper_fast.demo import DemoVideo

NEW = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("folder", type=Path, nargs="?", help="keeps the video and the session")
    parser.add_argument("--load", type=Path, help="only load this session and ask it")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    demo = DemoVideo(seconds=given.frames)
    if given.load:
        load(demo, given.load)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        video, saved = folder / f"{given.frames}.mp4", folder / f"{given.frames}.session"
        if not video.exists():
            demo.write(video)
        measure(demo, video, saved)
        again = ["--load", str(saved), "--frames", str(given.frames)]
        again += ["--threads", str(given.threads)]
        subprocess.run([sys.executable, __file__, *again], check=True)


def measure(demo: DemoVideo, video: Path, saved: Path) -> None:
    model = TimeViper.from_pretrained("timeviper-fast/tiny")
    print(f"before: {peak()}")
    begin = time.perf_counter()
    session = model.open(video, policy="fps:1")
    print(f"open: {time.perf_counter() - begin:.1f} s, {peak()}")
    questions = [demo.questions[i % len(demo.questions)] for i in range(10)]
    took, answers = [], []
    for question in questions:
        begin = time.perf_counter()
        answers.append(session.ask(question.text, max_new_tokens=NEW).text)
        took.append(time.perf_counter() - begin)
    right = sum(text == question.answer for text, question in zip(answers, questions))
    print(f"ten questions: {sum(took):.1f} s, the quickest {min(took):.2f} s, {right} right")
    begin = time.perf_counter()
    together = session.ask([question.text for question in questions], max_new_tokens=NEW)
    same = [answer.text for answer in together] == answers
    print(f"ten at once: {time.perf_counter() - begin:.1f} s, same answers: {same}; {peak()}")
    begin = time.perf_counter()
    session.save(saved, overwrite=True)
    size, whole = (path.stat().st_size / 1e6 for path in (saved, video))
    print(f"save: {time.perf_counter() - begin:.2f} s, {size:.1f} MB of a video of {whole:.1f} MB")
    print(f"answered: {answers[0]}", flush=True)


def load(demo: DemoVideo, saved: Path) -> None:
    model = TimeViper.from_pretrained("timeviper-fast/tiny")
    begin = time.perf_counter()
    session = model.load_session(saved)
    loaded = time.perf_counter()
    text = session.ask(demo.questions[0].text, max_new_tokens=NEW).text
    asked = time.perf_counter() - loaded
    print(f"a new process: loaded in {loaded - begin:.2f} s, answered in {asked:.2f} s: {text}")


def peak() -> str:
    """The most memory that this process has held, torch and the model included."""
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"


if __name__ == "__main__":
    main()
