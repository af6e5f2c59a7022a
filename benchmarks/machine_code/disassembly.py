"""Reading machine code: registers, spills and whether they sit in a loop, matrix instructions.

NVIDIA's is read from the very cubin that Triton would load, through the cuobjdump of its wheel;
AMD's from the assembly text. A spill is a store to local memory: Triton puts nothing else there.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import triton


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
    running: int
    """matrix instructions of sm_90 whose operand a a loop may overwrite while it is read"""
    instructions: int
    global_stores: int
    traps: int


class Instruction(NamedTuple):
    address: int
    opcode: str
    """without its modifiers: STL of STL.128"""
    modifiers: list[str]
    target: int | None
    """of a branch or call"""
    conditional: bool
    operands: str = ""


_SASS = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)"
    r"(?P<operands>[^;]*);",
    re.MULTILINE,
)
# operand a in registers; in shared memory it is gdesc[...]
_GMMA_OF_REGISTERS = re.compile(r"\wGMMA\s+R\d+, R\d+, gdesc\b.*")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_ENDS = ("BRA", "JMP", "EXIT", "BRX", "KILL")
_STORES = re.compile(r"(STG?|REDG?|ATOMG?|UTMASTG|UTMAREDG)\b")
_AMD_STORES = re.compile(r"(buffer|global|flat)_(store|atomic)")


def read_cubin(cubin: bytes, mma: str) -> Figures:
    """The figures of a cubin with one kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-sass", "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return read_sass(done.stdout, mma)


def read_sass(text: str, mma: str) -> Figures:
    """The figures of what `cuobjdump -sass -res-usage` prints of one kernel."""
    usage = re.search(r"\bREG:(\d+)", text)
    if usage is None:
        raise ValueError("cuobjdump reports no register count")
    code = [_instruction(match) for match in _SASS.finditer(text)]
    opcodes = [i.opcode for i in code]
    stores = [i for i in code if i.opcode == "STL"]
    edges = _successors(code)
    # the assembler pads the code behind the last exit
    padding = opcodes[::-1].index("EXIT") if "EXIT" in opcodes else 0
    return Figures(
        registers=int(usage[1]),
        spill_stores=_bytes(stores),
        spill_loads=_bytes(i for i in code if i.opcode == "LDL"),
        loop_spill_stores=_bytes(i for i in stores if i.address in _reached(i.address, edges)),
        running=_running_at_back_edges(code, edges),
        instructions=len(code) - padding,
        **_counted(opcodes, mma, _STORES, "BPT"),
    )


def read_amdgcn(text: str, mma: str) -> Figures:
    """The figures of AMD assembly; its compiler remarks on every spill and on every loop."""
    registers = re.search(r"^\s*\.vgpr_count:\s+(\d+)", text, re.MULTILINE)
    if registers is None:
        raise ValueError("the assembly has no vgpr_count")
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
    return Figures(
        registers=int(registers[1]),
        spill_stores=spills["Spill"],
        spill_loads=spills["Reload"],
        loop_spill_stores=spills["loop"],
        running=0,
        instructions=len(opcodes),
        **_counted(opcodes, mma, _AMD_STORES, "s_trap"),
    )


def _instruction(match: re.Match[str]) -> Instruction:
    opcode, *modifiers = match["opcode"].split(".")
    addresses = re.findall(r"\b0x([0-9a-f]+)\b", match["operands"])
    jumps = bool(addresses) and opcode in ("BRA", "CALL", "JMP")
    target = int(addresses[-1], 16) if jumps else None
    # a branch on uniform predicates or on divergence names its condition among the operands
    named = re.search(r"\bU?P\d|\bUR\d", match["operands"])
    return Instruction(
        int(match["address"], 16), opcode, modifiers, target, bool(match["guard"] or named),
        match["operands"],
    )  # fmt: skip


def _bytes(instructions: Iterable[Instruction]) -> int:
    return sum(
        next((_WIDTHS[part] for part in i.modifiers if part in _WIDTHS), 4) for i in instructions
    )


def _counted(opcodes: list[str], mma: str, stores: re.Pattern[str], trap: str) -> dict[str, Any]:
    """Matrix instructions and their families (HGMMA, v_mfma), global stores and traps."""
    found = [opcode for opcode in opcodes if re.match(mma, opcode)]
    # v_mfma of v_mfma_f32_32x32x8_bf16_1k
    families = {re.sub(r"(mfma).*", r"\1", opcode) for opcode in found}
    return {
        "mma": len(found),
        "mma_kind": "+".join(sorted(families)),
        "global_stores": sum(bool(stores.match(opcode)) for opcode in opcodes),
        "traps": opcodes.count(trap),
    }


def _successors(code: list[Instruction]) -> dict[int, list[int]]:
    """Where control may go from each address; a return goes behind every call."""
    following = {a.address: b.address for a, b in pairwise(code)}
    returns = [following[i.address] for i in code if i.opcode == "CALL"]
    edges: dict[int, list[int]] = {}
    for i in code:
        edges[i.address] = [] if i.target is None else [i.target]
        if i.opcode == "RET":
            edges[i.address] += returns
        if i.address in following and (i.opcode not in _ENDS or i.conditional):
            edges[i.address].append(following[i.address])
    return edges


def _reached(start: int, edges: Mapping[int, list[int]]) -> set[int]:
    """Where control can go from `start`; `start` itself if it lies in a loop."""
    seen: set[int] = set()
    todo = [start]
    while todo:
        new = set(edges.get(todo.pop(), ())) - seen
        seen |= new
        todo += new
    return seen


def _running_at_back_edges(code: list[Instruction], edges: Mapping[int, list[int]]) -> int:
    """Products (HGMMA) with operand a in registers that reach a back edge before a wait for all."""
    waits = {i.address for i in code if "DEPBAR" in i.modifiers and "gsb0, 0x0" in i.operands}
    unwaited = {a: [] if a in waits else following for a, following in edges.items()}
    back = {i.address for i in code if i.target is not None and i.target <= i.address}
    loops = {address for address in back if address in _reached(address, edges)}
    products = (i for i in code if _GMMA_OF_REGISTERS.fullmatch(i.opcode + i.operands))
    return sum(bool(loops & _reached(i.address, unwaited)) for i in products)
