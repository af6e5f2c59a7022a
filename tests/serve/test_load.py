"""The server as a process under load for two minutes, and after it was killed."""

from __future__ import annotations

import asyncio
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from tests.architecture.common import ROOT
from tests.serve.common import client_of, messages
from timeviper_fast.cli.serve import KEY
from timeviper_fast.demo import DemoVideo
from timeviper_fast.embedded.models import TINY
from timeviper_fast.timeviper import TimeViper

SECONDS = 120
CLIENTS, AT_ONCE = 16, 64
VIDEOS = 8
TOKENS = 16
SECRET = "load"


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Videos of 64 seconds, each with a sign, a colour and a chain of its own."""
    folder = tmp_path_factory.mktemp("films")
    found = {f"{seed}.mp4": DemoVideo(seed) for seed in range(VIDEOS)}
    for name, film in found.items():
        film.write(folder / name)
    return folder, found


@pytest.fixture(scope="module")
def answers(films):
    """What `session.ask` says to each question, {(file, question): text}."""
    folder, found = films
    model = TimeViper.from_pretrained(TINY, device="cpu")
    told = {}
    for name, film in found.items():
        session = model.open(folder / name, policy="fps:1")
        for question in film.questions:
            told[name, question.text] = session.ask(question.text, max_new_tokens=TOKENS).text
    return told


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process, and its address."""
    words = ["serve", "--media-root", str(folder), "--model", TINY, "--port", str(port)]
    words += ["--sample", "fps:1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    log = (folder.parent / "log").open("w+")
    with log, subprocess.Popen(
        [sys.executable, "-m", "timeviper_fast", *words],
        stderr=log, stdout=subprocess.DEVNULL, text=True, env={**environment, KEY: SECRET},
    ) as process:  # fmt: skip
        try:
            yield process, _address(process, Path(log.name))
        finally:
            process.kill()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    while not (found := re.search(r"http://[\d.]+:\d+", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    return found[0]


def resident(process: subprocess.Popen[str]) -> float:
    """MiB of memory that a process has."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


class Load:
    """Clients that ask at once until the time is over; each answer is that of its own video.

    Attributes:
        waits: seconds of each answer.
        asked: how often each video was asked.
        memory: MiB of the server, once in a second.
    """

    def __init__(self, address: str, process: subprocess.Popen[str], answers) -> None:
        self.process, self.answers = process, answers
        self.clients = [
            openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=SECRET, max_retries=0, timeout=60)
            for _ in range(CLIENTS)
        ]
        self.waits: list[float] = []
        self.asked: Counter[str] = Counter()
        self.memory: list[float] = []

    async def run(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        each = AT_ONCE // CLIENTS
        tasks = [self._ask(i, client) for i, client in enumerate(self.clients * each)]
        await asyncio.gather(*tasks, self._measure())

    async def _measure(self) -> None:
        while time.monotonic() < self.ends:
            self.memory.append(resident(self.process))
            await asyncio.sleep(1)

    async def _ask(self, number: int, client: openai.AsyncOpenAI) -> None:
        draw = random.Random(number)
        while time.monotonic() < self.ends:
            name, question = draw.choice(sorted(self.answers))
            given = {"model": TINY, "max_tokens": TOKENS, "messages": messages(name, question)}
            began = time.monotonic()
            if draw.random() < 0.25:
                parts = await client.chat.completions.create(stream=True, **given)
                chunks = [chunk async for chunk in parts]
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            else:
                reply = await client.chat.completions.create(**given)
                text = reply.choices[0].message.content
            assert text == self.answers[name, question], (name, question)
            self.waits.append(time.monotonic() - began)
            self.asked[name] += 1


@pytest.mark.long
def test_two_minutes_of_64_requests_at_once(films, answers, capsys):
    folder, found = films
    # they tell the videos apart, and most of them are right
    assert (
        len({answers[name, film.questions[0].text] for name, film in found.items()}) > VIDEOS // 2
    )
    truth = {(name, q.text): q.answer for name, film in found.items() for q in film.questions}
    right = sum(answers[key].strip() == answer for key, answer in truth.items())
    assert right > len(truth) // 2
    with serving(folder) as (process, address):
        load = Load(address, process, answers)
        asyncio.run(load.run(SECONDS))
        client = client_of(address, SECRET)
        metrics = client.with_options(timeout=20).get("/../metrics", cast_to=str)
    assert set(load.asked) == set(found)
    assert f'timeviper_requests_total{{code="200"}} {len(load.waits)}\n' in metrics
    assert f"timeviper_answers_total {len(load.waits)}\n" in metrics
    assert "timeviper_requests_now 0\n" in metrics
    quarter = len(load.memory) // 4
    early, late = (
        statistics.median(x) for x in (load.memory[quarter : 2 * quarter], load.memory[-quarter:])
    )
    waits = sorted(load.waits)
    with capsys.disabled():
        print(
            f"\n{len(waits)} answers, {len(waits) / SECONDS:.1f} a second; seconds to an answer: "
            f"{waits[len(waits) // 2]:.2f} (median), {waits[len(waits) * 95 // 100]:.2f} (95 %); "
            f"memory {early:.0f} MiB, at the end {late:.0f} MiB; {right} of {len(truth)} right"
        )
    assert late < 1.05 * early


@pytest.mark.long
def test_a_server_that_was_killed_answers_again(films, answers):
    folder, _ = films
    (name, question), text = next(iter(answers.items()))
    given = {"model": TINY, "max_tokens": TOKENS, "messages": messages(name, question)}
    with serving(folder) as (process, address):
        client = client_of(address, SECRET)
        stream = client.chat.completions.create(stream=True, **{**given, "max_tokens": 512})
        next(iter(stream))
        process.kill()
        with pytest.raises((openai.APIConnectionError, openai.APIError)):
            client.chat.completions.create(**given)
    with serving(folder, int(address.rpartition(":")[2])) as (_, again):
        assert again == address
        assert client.chat.completions.create(**given).choices[0].message.content == text
