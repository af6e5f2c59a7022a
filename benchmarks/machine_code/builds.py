"""Compiling launches, each in a process of its own: an error in LLVM ends the process it is in."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import tempfile
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

FORK = get_context("fork")
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
    done: Callable[[Build], None] = lambda build: None,
) -> list[Build]:
    """Compile `work`, `jobs` at a time (all processors if None); the builds come in the order
    given."""
    # hashes Triton's files once; otherwise every child process does it
    triton_key()
    jobs = jobs or os.cpu_count() or 1
    waiting = deque(enumerate(work))
    running: dict[Any, tuple[int, _Child]] = {}
    builds: dict[int, Build] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, item = waiting.popleft()
            child = _Child(*item)
            running[child.answer] = number, child
        for answer in wait(list(running)):
            number, child = running.pop(answer)
            builds[number] = child.build()
            done(builds[number])
    return [builds[number] for number in sorted(builds)]


class _Child:
    """One compilation in a forked process; its stderr is kept for the report."""

    def __init__(self, launch: Launch, target: Target) -> None:
        self.launch, self.target = launch, target
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed in build)
        self.answer, theirs = FORK.Pipe(duplex=False)
        given = (launch, target, theirs, self.stderr.fileno())
        self.process = FORK.Process(target=_compile, args=given)
        self.process.start()
        theirs.close()

    def build(self) -> Build:
        with self.stderr, self.answer:
            try:
                found = self.answer.recv()
            except EOFError:
                found = {"error": self.last_words()}
            self.process.join()
        return Build(self.launch, self.target, **found)

    def last_words(self) -> str:
        self.process.join()
        if self.process.exitcode == -signal.SIGALRM:
            return f"no end after {SECONDS} s"
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        says = next((line for line in lines if re.search("error|LLVM", line, re.I)), "")
        return f"the compiler aborted (exit {self.process.exitcode}): {says}"


def _compile(launch: Launch, target: Target, answer: Connection, stderr: int) -> None:
    # ends the process where the compiler does not
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    os.dup2(stderr, 2)
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
    given = (dict(part) for part in (launch.signature, launch.constexprs, launch.attrs))
    source = ASTSource(launch.kernel, *given)
    built = triton.compile(source, target=target.triton, options=dict(launch.options))
    read, code = (read_cubin, "cubin") if target.is_nvidia else (read_amdgcn, "amdgcn")
    return {
        "figures": read(built.asm[code], target.mma),
        "shared": built.metadata.shared,
        "warps": built.metadata.num_warps,
        "dots": len(re.findall(r"\btt\.dot(?:_scaled)?\b", built.asm["ttir"])),
    }
