"""The counter against kernels whose traffic and arithmetic can be worked out by hand.

The kernels use built-ins of the language only and are wrapped for the interpreter here, so these
tests count in every run, whichever backend the run is for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import GridExecutor, InterpretedFunction, InterpreterBuilder

from benchmarks.counting.cache_model import RESIDENT, in_order, together, traffic
from benchmarks.counting.counter import Access, Launch, counting, totals


@InterpretedFunction
def copy_kernel(x, y, n, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i * stride, mask=i < n), mask=i < n)


@InterpretedFunction
def twice_kernel(x, y, n, BLOCK: tl.constexpr):
    """Each program reads all of x, in blocks, and writes one block."""
    i = tl.arange(0, BLOCK)
    for start in range(0, n, BLOCK):
        total = tl.load(x + start + i)
    tl.store(y + tl.program_id(0) * BLOCK + i, total)


@InterpretedFunction
def matmul_kernel(a, b, c, K: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    m = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    n = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    k = tl.arange(0, K)
    out = tl.dot(tl.load(a + m * K + k[None, :]), tl.load(b + k[:, None] * N + n))
    tl.store(c + m * N + n, out)


@InterpretedFunction
def special_kernel(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    v = tl.exp(v) + tl.exp2(v) + tl.log(v) + tl.rsqrt(v) + 1 / v
    tl.store(y + i, v, mask=i < 5)


@InterpretedFunction
def until_kernel(x, y, n):
    """A loop whose bound is read from memory."""
    for i in range(0, tl.load(n)):
        tl.store(y + i, tl.load(x + i))


@InterpretedFunction
def add_kernel(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(y + i, tl.load(x + i))


def aligned(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Ones at an address that is a multiple of a sector."""
    numel = torch.Size(shape).numel()
    storage = torch.ones(numel + 128, dtype=dtype)
    skip = -storage.data_ptr() % 128 // storage.element_size()
    return storage[skip : skip + numel].view(shape)


def counted(kernel: InterpretedFunction, grid: tuple[int, ...], *args: object, **kw: int):
    with counting() as launches:
        kernel[grid](*args, **kw)
    return launches


def moved(launches: Sequence[Launch]) -> tuple[int, ...]:
    """Bytes: requested to read and to write, cold reads and writes."""
    total = totals(launches)
    names = ("requested_read", "requested_write", "cold_read", "cold_write")
    return tuple(total[name] for name in names)


def twice() -> list[Launch]:
    """Two programs, each of which reads 8 lines of 128 bytes and writes 2."""
    return counted(twice_kernel, (2,), aligned(512), aligned(256), 512, BLOCK=128)


def matmul() -> tuple[list[Launch], torch.Tensor]:
    a, b, c = aligned(64, 32), aligned(32, 96), aligned(64, 96, dtype=torch.float32)
    return counted(matmul_kernel, (2, 3), a, b, c, K=32, N=96, BLOCK=32), c


@pytest.mark.parametrize(
    ("x", "n", "stride", "bytes_moved"),
    [
        pytest.param(aligned(1024), 1024, 1, (2048, 2048, 2048, 2048), id="whole"),
        # a sector for each element
        pytest.param(aligned(16 * 1024), 1024, 16, (2048, 2048, 32 * 1024, 2048), id="strided"),
        # 1000 elements of 2 bytes are 62.5 sectors
        pytest.param(aligned(1024), 1000, 1, (2000, 2000, 63 * 32, 63 * 32), id="masked"),
        pytest.param(aligned(1032)[8:], 1024, 1, (2048, 2048, 2048 + 32, 2048), id="unaligned"),
    ],
)
def test_copy(x: torch.Tensor, n: int, stride: int, bytes_moved: tuple[int, ...]):
    launches = counted(copy_kernel, (8,), x, aligned(1024), n, stride, BLOCK=128)
    assert moved(launches) == bytes_moved
    assert [(launch.kernel, launch.grid) for launch in launches] == [("copy_kernel", (8, 1, 1))]
    assert totals(launches)["programs"] == 8


def test_matmul():
    launches, c = matmul()
    # each of 2 row blocks reads all of b, each of 3 column blocks all of a
    read, write = 2 * (3 * 64 * 32 + 2 * 32 * 96), 4 * 64 * 96
    assert moved(launches) == (read, write, 2 * (64 * 32 + 32 * 96), write)
    assert totals(launches)["dot.fp16"] == 2 * 64 * 32 * 96
    assert bool((c == 32).all())


def test_special_functions_count_padded_lanes():
    x, y = (aligned(64, dtype=torch.float32) for _ in "xy")
    total = totals(counted(special_kernel, (3,), x, y, BLOCK=64))
    special = {k: n for k, n in total.items() if k.startswith("special.")}
    names = ("exp", "exp2", "log", "rsqrt", "div")
    assert special == {f"special.{name}": 3 * 64 for name in names}


def test_atomic_reads_and_writes():
    x, y = (aligned(64, dtype=torch.float32) for _ in "xy")
    assert moved(counted(add_kernel, (2,), x, y, BLOCK=64)) == (4 * 256, 2 * 256, 512, 256)


def test_a_loop_bound_read_from_memory():
    """Triton 3.6 with numpy 2.4 cannot run this without help."""
    launches = counted(until_kernel, (1,), aligned(8), aligned(8), torch.tensor([3]))
    assert totals(launches)["requested_write"] == 3 * 2


def test_a_kernel_that_is_not_asked_for_does_not_run():
    x, y, z = aligned(1024), torch.zeros(1024, dtype=torch.float16), aligned(256)
    with counting(["twice_kernel"]) as launches:
        copy_kernel[(8,)](x, y, 1024, 1, BLOCK=128)
        twice_kernel[(2,)](x, z, 512, BLOCK=128)
    assert [launch.kernel for launch in launches] == ["twice_kernel"]
    assert not y.any()


def test_the_interpreter_is_left_as_it_was():
    before = dict(vars(InterpreterBuilder)), GridExecutor.__call__
    with counting(), pytest.raises(RuntimeError, match="nested"), counting():
        pass
    assert (dict(vars(InterpreterBuilder)), GridExecutor.__call__) == before


def test_pytorch_operations_move_bytes():
    x = aligned(64, 64)
    with counting() as launches:
        x.t()  # a view is free
        torch.empty(64)
        x.t().contiguous()
        x.zero_()
        # the expanded row is read once
        x[0].expand(8, 64) + 1
    found = [
        (launch.kernel, launch.distinct(False), launch.counts["requested_write"])
        for launch in launches
    ]
    assert found == [
        ("torch.clone", 8192, 8192), ("torch.zero_", 0, 8192), ("torch.add", 128, 1024),
    ]  # fmt: skip


def test_operations_inside_a_custom_op_count_and_the_op_does_not():
    @torch.library.custom_op("benchmarks_test::copy_of", mutates_args=())
    def copy_of(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        copy_kernel[(8,)](x.clone(), y, 1024, 1, BLOCK=128)
        return y

    x = aligned(1024)
    with counting() as launches:
        copy_of(x)
    assert [launch.kernel for launch in launches] == ["torch.clone", "copy_kernel"]
    assert totals(launches)["requested_read"] == 2 * 2048


def test_a_cache_keeps_what_fits():
    launches = twice()
    assert moved(launches) == (2 * 1024, 512, 1024, 512)
    assert traffic(launches, float("inf")) == (1024, 512)
    assert traffic(launches, 10 * 128) == (1024, 512)
    # x is 8 lines; LRU with 7 has always just lost the line that comes next
    assert traffic(launches, 7 * 128) == (2048, 512)
    # programs that advance together share what they read
    assert traffic(launches, 3 * 128, resident=2) == (1024, 512)


def test_a_launch_starts_cold_but_finds_what_the_cache_kept():
    x, y, z = aligned(1024), aligned(1024), aligned(1024)
    with counting() as launches:
        copy_kernel[(8,)](x, y, 1024, 1, BLOCK=128)
        copy_kernel[(8,)](y, z, 1024, 1, BLOCK=128)
    assert moved(launches) == (2 * 2048,) * 4
    assert totals(launches)["launches"] == 2
    assert traffic(launches, float("inf")) == (2048, 4096)
    assert traffic(launches, 4 * 128) == (4096, 4096)


def test_programs_run_in_hardware_order():
    """The interpreter runs the last axis fastest, a GPU the first."""
    accesses = matmul()[0][0].accesses
    order = [access.program for access in in_order(accesses, 1)]
    assert order == [program for program in range(6) for _ in range(3)]
    stores = {access.program: int(access.sectors[0]) for access in accesses if access.writes}
    row_block, column_block = 32 * 96 * 4 // 32, 32 * 4 // 32
    assert stores[1] - stores[0] == row_block
    assert stores[2] - stores[0] == column_block


def reading(lines_of: Sequence[Sequence[int]]) -> Launch:
    """By hand: each program reads a sector of each of its lines, one after the other."""
    launch = Launch("by hand")
    for program, lines in enumerate(lines_of):
        launch.accesses += [Access(program, False, np.array([4 * line])) for line in lines]
    return launch


def test_residents_take_turns_and_are_replaced_when_they_end():
    accesses = reading([[0], [0, 0, 0], [0, 0]]).accesses
    assert [access.program for access in in_order(accesses, 2)] == [0, 1, 2, 1, 2, 1]


def test_a_fraction_of_the_grid_gets_that_fraction_of_the_cache():
    """32 programs read the same 32 lines in the same order; each has one line of the cache."""
    launch, capacity = reading([range(32)] * 32), RESIDENT * 128.0
    # with all in step, one fetches each line and the others find it
    assert together([launch], [32 / RESIDENT], capacity) == (32 * 32, 0)
    # 16 in step keep the last 16 lines, so the other 16 programs start on lines that are gone
    assert together([launch], [16 / RESIDENT], capacity) == (2 * 32 * 32, 0)
    # at least 8 are in step, with 8 lines, however small the fraction
    for share in (8 / RESIDENT, 0.1 / RESIDENT):
        assert together([launch], [share], capacity) == (4 * 32 * 32, 0)


def test_each_launch_has_its_own_fraction_and_begins_with_an_empty_cache():
    launches, shares = [reading([range(16)] * 16)] * 2, [16 / RESIDENT, 8 / RESIDENT]
    # 16 in step fetch each line once; 8, with 8 lines, each line twice
    assert together(launches, shares, RESIDENT * 128.0) == ((16 + 2 * 16) * 32, 0)
