"""Compiling launches, each in a process of its own: an error in LLVM ends the process it is in."""

from __future__ import annotations

import faulthandler
import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import triton
from triton.compiler import ASTSource
from triton.runtime.cache import triton_key

from benchmarks.machine_code.disassembly import Figures, read_amdgcn, read_cubin
from benchmarks.machine_code.launches import Launch
from benchmarks.machine_code.targets import Target

__all__ = ["Build", "compile_all"]

SECONDS = 300


@dataclass(frozen=True)
class Build:
    """The result of compiling one launch for one target: its figures, or the compiler's error."""

    launch: Launch
    target: Target
    figures: Figures | None = None
    shared: int = 0
    warps: int = 0
    dots: int = 0
    """matrix products in the kernel as written"""
    error: str = ""

    @property
    def blocks_at_once(self) -> int:
        assert self.figures is not None
        return self.target.blocks_at_once(self.figures.registers, self.shared, self.warps)


def compile_all(
    work: Iterable[tuple[Launch, Target]],
    jobs: int | None = None,
    done: Callable[[Build], None] | None = None,
) -> list[Build]:
    """Compile `work`, `jobs` at a time (all processors if None), in the order given."""
    jobs = jobs or os.cpu_count() or 1
    items = list(work)
    # hashes Triton's files once; otherwise every child process does it
    triton_key()
    builds: dict[int, Build] = {}
    waiting, running = deque(enumerate(items)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, (launch, target) = waiting.popleft()
            child = _Child(launch, target)
            running[child.answer] = (number, child)
        ready = wait(list(running), timeout=1)
        late = [answer for answer, (_, child) in running.items() if child.is_late]
        for answer in {*ready, *late}:
            number, child = running.pop(answer)  # type: ignore[index]
            builds[number] = child.build(bool(answer in ready))
            if done:
                done(builds[number])
    return [builds[number] for number in range(len(items))]


class _Child:
    """One compilation in a forked process; its stderr is kept for the report."""

    def __init__(self, launch: Launch, target: Target) -> None:
        self.launch, self.target = launch, target
        self.words = tempfile.TemporaryFile()  # noqa: SIM115  (closed in build)
        self.answer, theirs = get_context("fork").Pipe(duplex=False)
        self.process = get_context("fork").Process(
            target=_compile, args=(launch, target, theirs, self.words.fileno())
        )
        self.start = time.monotonic()
        self.process.start()
        theirs.close()

    @property
    def is_late(self) -> bool:
        return time.monotonic() - self.start > SECONDS

    def build(self, answered: bool) -> Build:
        found: dict[str, Any] = {"error": f"no end after {SECONDS} s"}
        if answered:
            try:
                found = self.answer.recv()
            except EOFError:
                found = {"error": ""}
        else:
            self.process.kill()
        self.process.join()
        if found.get("error") == "":
            self.words.seek(0)
            lines = self.words.read().decode(errors="replace").strip().splitlines()
            says = next((line for line in lines if re.search("error|LLVM", line, re.I)), "")
            found["error"] = f"the compiler aborted (exit {self.process.exitcode}): {says}"
        self.answer.close()
        self.words.close()
        return Build(self.launch, self.target, **found)


def _compile(launch: Launch, target: Target, answer: Connection, words: int) -> None:
    os.dup2(words, 2)
    # it would write the stack of an abort to the parent's terminal
    faulthandler.disable()
    try:
        answer.send(_figures(launch, target))
    except Exception as error:
        answer.send({"error": _told(error)})
    answer.close()
    # leave without the parent's clean-up of pytest and open files
    os._exit(0)


def _told(error: BaseException) -> str:
    """An error's first and last line, without the source between them, and its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    short = " ".join(dict.fromkeys([*lines[:1], *lines[-1:]])).removesuffix(" ^")
    cause = f"; {_told(error.__cause__)}" if error.__cause__ else ""
    return f"{type(error).__name__}: {short}{cause}"


def _figures(launch: Launch, target: Target) -> dict[str, Any]:
    source = ASTSource(
        launch.kernel, dict(launch.signature), dict(launch.constexprs), dict(launch.attrs)
    )
    built = triton.compile(source, target=target.triton, options=dict(launch.options))
    if target.is_nvidia:
        figures = read_cubin(built.asm["cubin"], target.mma)
    else:
        figures = read_amdgcn(built.asm["amdgcn"], target.mma)
    return {
        "figures": figures,
        "shared": built.metadata.shared,
        "warps": built.metadata.num_warps,
        "dots": len(re.findall(r"\btt\.dot(?:_scaled)?\b", built.asm["ttir"])),
    }
