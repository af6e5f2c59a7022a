"""Reading machine code: registers, spills and whether they sit in a loop, matrix instructions.

NVIDIA's is read from the very cubin that Triton would load, through the cuobjdump of its wheel;
AMD's from the assembly text. A spill is a store to local memory: Triton puts nothing else there.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import triton

__all__ = ["Figures", "read_amdgcn", "read_cubin", "read_sass"]


@dataclass(frozen=True)
class Figures:
    """Counts of one kernel's machine code; spills in bytes per thread, as written in the code."""

    registers: int
    spill_stores: int
    spill_loads: int
    loop_spill_stores: int
    """of `spill_stores`, those that a loop repeats"""
    mma: int
    mma_kind: str
    instructions: int
    global_stores: int
    traps: int


class Instruction(NamedTuple):
    address: int
    opcode: str
    """with its modifiers, as STL.128"""
    target: int | None
    """of a branch or call"""
    predicated: bool


_SASS = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)"
    r"(?P<operands>[^;]*);",
    re.MULTILINE,
)
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_JUMPS = ("BRA", "CALL", "JMP", "RET", "EXIT", "BRX", "KILL")
_STORES = re.compile(r"(STG?|REDG?|ATOMG?|UTMASTG|UTMAREDG)\b")
_AMD_STORES = re.compile(r"(buffer|global|flat)_(store|atomic)")


def read_cubin(cubin: bytes, mma: str) -> Figures:
    """The figures of a cubin with one kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [str(tool), "-sass", "-res-usage", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return read_sass(done.stdout, mma)


def read_sass(text: str, mma: str) -> Figures:
    """The figures of what `cuobjdump -sass -res-usage` prints of one kernel."""
    usage = re.search(r"\bREG:(\d+)", text)
    if usage is None:
        raise ValueError("cuobjdump reports no register count")
    code = [_instruction(match) for match in _SASS.finditer(text)]
    repeated = _in_loops(code)
    spills = [i for i in code if i.opcode.split(".")[0] == "STL"]
    kinds = [i.opcode for i in code if re.match(mma, i.opcode)]
    # the assembler pads the code behind the last exit
    ends = [n for n, i in enumerate(code) if i.opcode == "EXIT"]
    return Figures(
        registers=int(usage[1]),
        spill_stores=_bytes(spills),
        spill_loads=_bytes(i for i in code if i.opcode.split(".")[0] == "LDL"),
        loop_spill_stores=_bytes(i for i in spills if i.address in repeated),
        mma=len(kinds),
        mma_kind=_family(kinds),
        instructions=ends[-1] + 1 if ends else len(code),
        global_stores=sum(1 for i in code if _STORES.match(i.opcode)),
        traps=sum(1 for i in code if i.opcode.startswith("BPT")),
    )


def read_amdgcn(text: str, mma: str) -> Figures:
    """The figures of AMD assembly; its compiler remarks on every spill and on every loop."""

    def field(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s+(\d+)", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"the assembly has no {name}")
        return int(found[1])

    opcodes: list[str] = []
    spills = {"Spill": 0, "Reload": 0, "loop": 0}
    looped = False
    for line in text[: text.rfind("s_endpgm")].splitlines():
        if re.match(r"\.LBB|; %bb", line):
            looped = False
        looped |= bool(re.search(r";.*\bLoop\b", line))
        opcode = re.match(r"\s+([a-z]\w+)", line)
        if opcode:
            opcodes.append(opcode[1])
        remark = re.search(r"(\d+)-byte Folded (Spill|Reload)", line)
        # a spill into another register file is no access to memory
        if remark and opcode and opcode[1].startswith(("scratch_", "buffer_")):
            spills[remark[2]] += int(remark[1])
            spills["loop"] += int(remark[1]) * (looped and remark[2] == "Spill")
    kinds = [opcode for opcode in opcodes if re.match(mma, opcode)]
    return Figures(
        registers=field("vgpr_count"),
        spill_stores=spills["Spill"],
        spill_loads=spills["Reload"],
        loop_spill_stores=spills["loop"],
        mma=len(kinds),
        mma_kind=_family(kinds),
        instructions=len(opcodes),
        global_stores=sum(1 for opcode in opcodes if _AMD_STORES.match(opcode)),
        traps=opcodes.count("s_trap"),
    )


def _instruction(match: re.Match[str]) -> Instruction:
    opcode, operands = match["opcode"], match["operands"]
    target = None
    if opcode.split(".")[0] in ("BRA", "CALL", "JMP"):
        addresses = re.findall(r"\b0x([0-9a-f]+)\b", operands)
        target = int(addresses[-1], 16) if addresses else None
    # a branch on uniform predicates or on divergence names its condition among the operands
    conditional = bool(match["guard"]) or bool(re.search(r"\bU?P\d|\bUR\d", operands))
    return Instruction(int(match["address"], 16), opcode, target, conditional)


def _bytes(instructions: Iterable[Instruction]) -> int:
    return sum(
        next((_WIDTHS[part] for part in i.opcode.split(".") if part in _WIDTHS), 4)
        for i in instructions
    )


def _family(opcodes: list[str]) -> str:
    """HGMMA of HGMMA.64x128x16.F32.BF16; v_mfma of v_mfma_f32_32x32x8_bf16_1k."""
    families = {re.match(r"v_s?mfma|\w+", opcode)[0] for opcode in opcodes}  # type: ignore[index]
    return "+".join(sorted(families))


def _successors(code: list[Instruction]) -> dict[int, list[int]]:
    """Where control may go from each address; a return goes behind every call."""
    following = {a.address: b.address for a, b in pairwise(code)}
    returns = [following[i.address] for i in code if i.opcode.startswith("CALL")]
    edges: dict[int, list[int]] = {}
    for i in code:
        kind = i.opcode.split(".")[0]
        goes = [] if i.target is None else [i.target]
        if kind == "RET":
            goes += returns
        if i.address in following and (
            kind not in _JUMPS or i.predicated or kind in ("CALL", "RET")
        ):
            goes.append(following[i.address])
        edges[i.address] = goes
    return edges


def _in_loops(code: list[Instruction]) -> set[int]:
    """Addresses that lie on a cycle, but for the branch to itself that ends every kernel.

    Every cycle has an edge back from `source` to `target`. An address lies on such a cycle if
    `target` reaches it and it reaches `source`.
    """
    forward = _successors(code)
    backward: dict[int, list[int]] = {address: [] for address in forward}
    for source, targets in forward.items():
        for target in targets:
            backward.setdefault(target, []).append(source)
    looped: set[int] = set()
    for source, targets in forward.items():
        for target in targets:
            if target < source:
                looped |= _reach(forward, target) & _reach(backward, source)
    return looped


def _reach(edges: dict[int, list[int]], start: int) -> set[int]:
    seen, todo = {start}, [start]
    while todo:
        for address in edges.get(todo.pop(), ()):
            if address not in seen:
                seen.add(address)
                todo.append(address)
    return seen
