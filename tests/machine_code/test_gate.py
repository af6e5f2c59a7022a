"""The gate refuses kernels that are made to be wrong, and machine code is read correctly."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.machine_code import builds, table
from benchmarks.machine_code.builds import Build, compile_all
from benchmarks.machine_code.cases import empty
from benchmarks.machine_code.disassembly import read_sass
from benchmarks.machine_code.gate import faults
from benchmarks.machine_code.launches import Launch, recorded
from benchmarks.machine_code.targets import TARGETS
from tvkernels.core.tl import waited

SM_90 = TARGETS["sm_90"]
X = torch.empty(1 << 20, device="meta")
SQUARE = empty(128, 128, dtype=torch.float16)


@triton.jit
def sum_kernel(x_ptr, y_ptr, n, stride, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    lanes = tl.arange(0, BLOCK)
    for start in range(0, n, BLOCK):
        total += tl.load(x_ptr + (start + lanes) * stride, mask=start + lanes < n, other=0.0)
    tl.store(y_ptr + lanes, total)


@triton.jit
def product_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    square = lanes[:, None] * BLOCK + lanes[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for i in range(n):
        x = tl.load(x_ptr + i * BLOCK * BLOCK + square)
        total = tl.dot(x, x, total)
    tl.store(y_ptr + square, total)


@triton.jit
def weighted_kernel(x_ptr, y_ptr, n, WAITS: tl.constexpr, BLOCK: tl.constexpr):
    """Both operands of the second product are made in the loop, as in an attention."""
    lanes = tl.arange(0, BLOCK)
    square = lanes[:, None] * BLOCK + lanes[None, :]
    q = tl.load(x_ptr + square)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for i in range(n):
        k = tl.load(x_ptr + i * BLOCK * BLOCK + square)
        weight = tl.exp2(tl.dot(q, tl.trans(k))).to(k.dtype)
        total = tl.dot(weight, k, total)
        if WAITS:
            total = waited(total)
    tl.store(y_ptr + square, total)


@triton.jit
def idle_kernel(x_ptr, n):
    if n < 0:
        tl.store(x_ptr + n, 1.0)


@triton.jit
def crowded_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    a, b = tl.load(x_ptr + lanes), tl.load(x_ptr + BLOCK + lanes)
    for i in range(n):
        c = tl.load(x_ptr + i * BLOCK + lanes)
        a = a * c + b
        b += a * tl.sum(c)
        tl.store(y_ptr + i * BLOCK + lanes, a)
    tl.store(y_ptr + lanes, a + b)


def launch(kernel, *args, target=SM_90, grid=(1,), **options) -> Launch:
    with recorded(target, "a test") as launches:
        kernel[grid](*args, **options)
    return launches[0]


def build(kernel, *args, target=SM_90, **options) -> Build:
    return compile_all([(launch(kernel, *args, target=target, **options), target)])[0]


def sound(**options) -> Build:
    return build(sum_kernel, X, X, 999, 2, **{"BLOCK": 128, **options})


# launches


def test_a_launch_is_specialised_as_the_jit_does():
    made = launch(sum_kernel, X, X[1:], 2048, 1, BLOCK=128)
    types = {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32"}
    assert made.signature == types | {"stride": "constexpr", "BLOCK": "constexpr"}
    assert made.constexprs == {(3,): 1, (4,): 128}
    aligned = {place for place, attrs in made.attrs.items() if ["tt.divisibility", 16] in attrs}
    # x and n; x[1:] starts 4 bytes in
    assert aligned == {(0,), (2,)}


def test_a_size_past_2_to_31_is_int64():
    assert launch(sum_kernel, X, X, 2**31, 2, BLOCK=128).signature["n"] == "i64"


def test_launches_of_one_machine_code_are_one():
    a, same, other = (launch(sum_kernel, X, X, n, 2, BLOCK=128).key for n in (16, 32, 17))
    assert a == same != other


# builds


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_a_sound_kernel_passes_and_a_dot_is_seen(target):
    assert faults(sound(target=target)) == []
    made = build(product_kernel, SQUARE, X, 8, BLOCK=128, num_warps=4, target=target)
    assert faults(made) == []
    assert made.dots
    kinds = {"sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
    assert made.figures.mma_kind == kinds.get(target.name, "HMMA")


def test_two_warps_get_no_warp_group_product():
    made = build(product_kernel, SQUARE, X, 8, BLOCK=64, num_warps=2)
    assert "no matrix instruction of sm_90's kind" in faults(made)[0]


def test_a_kernel_that_stores_nothing_is_refused():
    assert "is no working kernel" in faults(build(idle_kernel, X, 1))[0]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_spills_in_a_loop_are_seen(target):
    target = TARGETS[target]
    size = 4096 * (1 if target.is_nvidia else 4)
    made = build(crowded_kernel, X, X, 5, BLOCK=size, num_warps=1, target=target)
    assert 0 < made.figures.loop_spill_stores <= made.figures.spill_stores
    assert made.figures.spill_loads > 0
    if target.is_nvidia:
        assert [fault.split()[0] for fault in faults(made)] == ["stores", "stores"]


def test_a_product_of_registers_ends_within_its_iteration():
    """Otherwise it is refused; the wait costs no instruction that is not its own."""
    made = [
        build(weighted_kernel, SQUARE, X, 8, WAITS=waits, BLOCK=64, num_warps=4, num_stages=2)
        for waits in (False, True)
    ]
    early, late = (each.figures for each in made)
    assert "has 4 products whose operand a lies in registers" in faults(made[0])[0]
    assert faults(made[1]) == []
    assert (early.running, late.running) == (4, 0)
    assert late.instructions <= early.instructions + 4
    assert made[0].shared == made[1].shared


def test_too_much_shared_memory_is_refused():
    made = replace(sound(), shared=SM_90.shared_per_block)
    assert faults(made) == []
    assert "shared memory" in faults(replace(made, shared=made.shared + 1))[0]


def test_a_grid_that_cannot_be_launched_is_refused():
    assert "70000 blocks along y" in faults(sound(grid=(1, 70_000)))[0]


def test_an_error_of_the_compiler_is_told():
    made = sound(BLOCK=100)
    assert "does not compile" in faults(made)[0]
    assert "power of 2" in made.error


def test_a_compiler_that_aborts_or_never_ends_costs_one_build(monkeypatch):
    figures = builds._figures

    def compile_or_not(launch, target):
        if launch.case == "aborts":
            os.write(2, b"LLVM ERROR: cannot select\n")
            os.abort()
        if launch.case == "never ends":
            signal.alarm(1)
            signal.pause()
        return figures(launch, target)

    monkeypatch.setattr(builds, "_figures", compile_or_not)
    good = launch(sum_kernel, X, X, 999, 2, BLOCK=128)
    bad = [replace(good, case=case) for case in ("aborts", "never ends")]
    made = compile_all([(each, SM_90) for each in (*bad, good)])
    assert [build.error for build in made] == [
        "the compiler aborted (exit -6): LLVM ERROR: cannot select", "no end after 300 s", "",
    ]  # fmt: skip


# machine code

LISTING = """
  REG:40 STACK:8 SHARED:0
    /*0000*/    MOV R1, c[0x0][0x28] ;
    /*0010*/    STL [R1], R2 ;
    /*0020*/    ISETP.GE.AND P0, PT, R0, R3, PT ;
    /*0030*/    STL.128 [R1+0x10], R4 ;
    /*0040*/    @P1 BRA 0x90 ;
    /*0050*/    HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
    /*0060*/    @!P0 BRA 0x20 ;
    /*0070*/    STG.E [R2], R4 ;
    /*0080*/    EXIT ;
    /*0090*/    STL.64 [R1], R2 ;
    /*00a0*/    LDL R3, [R1] ;
    /*00b0*/    BRA 0x70 ;
    /*00c0*/    BRA 0xc0;
    /*00d0*/    NOP;
"""


def test_a_listing_is_read():
    figures = read_sass(LISTING, SM_90.mma)
    assert (figures.registers, figures.instructions) == (40, 9)
    assert (figures.spill_stores, figures.spill_loads) == (4 + 16 + 8, 4)
    # the block behind the exit jumps back, but not into the loop
    assert figures.loop_spill_stores == 16
    assert (figures.mma, figures.mma_kind) == (1, "HGMMA")
    assert (figures.global_stores, figures.traps) == (1, 0)


# one iteration: the scores, a wait, the product of registers, the branch back
LOOP = """
  REG:40
    /*0000*/    WARPGROUP.ARRIVE ;
    /*0010*/    HGMMA.64x64x16.F32.BF16 R88, gdesc[UR24], RZ, !UPT, gsb0 ;
    /*0020*/    WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
    /*0030*/    F2FP.BF16.F32.PACK_AB R128, R89, R88 ;
    /*0040*/    HGMMA.64x128x16.F32.BF16 R24, R128, gdesc[UR24].tnspB, R24, gsb0 ;
    /*0050*/    {wait} ;
    /*0060*/    @!P0 BRA 0x0 ;
    /*0070*/    WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
    /*0080*/    STG.E [R2], R24 ;
    /*0090*/    EXIT ;
"""


@pytest.mark.parametrize(
    ("wait", "running"),
    [
        ("WARPGROUP.DEPBAR.LE gsb0, 0x0", 0),
        ("NOP", 1),
        # the other kind of barrier, and a wait for all groups but one
        ("DEPBAR.LE SB0, 0x0", 1),
        ("WARPGROUP.DEPBAR.LE gsb0, 0x1", 1),
        ("@P1 BRA 0x70", 1),
    ],
)
def test_a_wait_behind_the_back_edge_is_too_late(wait, running):
    assert read_sass(LOOP.format(wait=wait), SM_90.mma).running == running


def test_operands_in_shared_memory_may_run_over_the_back_edge():
    """No instruction of the loop writes them; and a loop that is left may leave products running."""
    shared = LOOP.replace("R24, R128, gdesc", "R24, gdesc").format(wait="NOP")
    left = LOOP.replace("@!P0 BRA 0x0", "@!P0 BRA 0x70").format(wait="NOP")
    for listing in (shared, left):
        assert read_sass(listing, SM_90.mma).running == 0


def test_blocks_at_once_are_bounded_by_each_resource():
    for registers, shared, blocks in (
        (32, 0, 16), (128, 0, 4), (32, 100, 2), (32, 227, 1), (32, 228, 0),
    ):  # fmt: skip
        assert SM_90.blocks_at_once(registers, shared * 1024, warps=4) == blocks
    assert TARGETS["gfx942"].blocks_at_once(128, 0, warps=4) == 4


# the page


def test_the_page_has_the_worst_build_of_each_kernel_and_target():
    made = Build(launch(sum_kernel, X, X, 16, 2, BLOCK=8), SM_90, read_sass(LISTING, ""), warps=4)

    def spilling(registers: int, stores: int, loops: int, target: str) -> Build:
        spills = {"spill_stores": stores, "loop_spill_stores": loops, "spill_loads": stores}
        figures = replace(made.figures, registers=registers, **spills)
        return replace(made, figures=figures, target=TARGETS[target])

    broken = replace(made, figures=None, target=TARGETS["gfx942"])
    built = [
        spilling(255, 96, 0, "sm_80"), spilling(64, 8, 8, "sm_80"), spilling(40, 0, 0, "sm_90"),
        broken, spilling(99, 8, 8, "gfx942"),
    ]  # fmt: skip
    mark = table.mark([(build.launch.config, build.target.name) for build in built])
    page = {"3.6.0": table.section("3.6.0", built), "3.9.0": table.section("3.9.0", [])}
    section = table.sections(table.page(page))["3.6.0"]
    cells = ["64 / 8, 8, 8 / 8", "-", "40 / 0, 0, 0 / 12", "-", "-", table.BROKEN]
    assert section.endswith("\n| " + " | ".join(["sum_kernel", mark, *cells]) + " |")
    assert table.marks(section) == {"sum_kernel": mark}


def test_the_digest_sees_values_and_not_names():
    mark = table.mark([("BLOCK=8 warps=4", "sm_80")])
    assert mark == table.mark([("WIDTH=8 warps=4", "sm_80")])
    assert mark != table.mark([("BLOCK=8 warps=8", "sm_80")])
    assert mark != table.mark([("BLOCK=8 warps=4", "sm_90")])
