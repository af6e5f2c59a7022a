"""The counter against kernels whose traffic and arithmetic can be worked out by hand.

The kernels use built-ins of the language only and are wrapped for the interpreter here, so these
tests count in every run, whichever backend the run is for.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import GridExecutor, InterpretedFunction, InterpreterBuilder

from benchmarks.counting.cache_model import RESIDENT, in_order, together, traffic
from benchmarks.counting.counter import Access, Launch, Record, counting


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


def counted(kernel: InterpretedFunction, grid: tuple[int, ...], *args: object, **kw: int) -> Record:
    with counting() as record:
        kernel[grid](*args, **kw)
    return record


def moved(record: Record) -> dict[str, int]:
    total = record.totals()
    keys = ("requested_read", "requested_write", "cold_read", "cold_write")
    return {key: total[key] for key in keys}


def bytes_of(read: int, write: int, cold_read: int, cold_write: int) -> dict[str, int]:
    return {
        "requested_read": read,
        "requested_write": write,
        "cold_read": cold_read,
        "cold_write": cold_write,
    }


def test_copy():
    x, y = aligned(1024), aligned(1024)
    record = counted(copy_kernel, (8,), x, y, 1024, 1, BLOCK=128)
    assert moved(record) == bytes_of(2048, 2048, 2048, 2048)
    assert record.totals()["programs"] == 8
    assert [(launch.kernel, launch.grid) for launch in record.launches] == [
        ("copy_kernel", (8, 1, 1))
    ]


def test_strided_copy_moves_a_sector_per_element():
    x, y = aligned(1024 * 16), aligned(1024)
    record = counted(copy_kernel, (8,), x, y, 1024, 16, BLOCK=128)
    assert moved(record) == bytes_of(2048, 2048, 32 * 1024, 2048)


def test_masked_lanes_move_nothing():
    x, y = aligned(1024), aligned(1024)
    # 1000 elements of 2 bytes are 62.5 sectors
    record = counted(copy_kernel, (8,), x, y, 1000, 1, BLOCK=128)
    assert moved(record) == bytes_of(2000, 2000, 63 * 32, 63 * 32)


def test_an_unaligned_tensor_touches_one_more_sector():
    x, y = aligned(1024 + 8)[8:], aligned(1024)
    record = counted(copy_kernel, (8,), x, y, 1024, 1, BLOCK=128)
    assert moved(record) == bytes_of(2048, 2048, 2048 + 32, 2048)


def test_reading_twice_is_requested_twice_and_moved_once():
    x, y = aligned(512), aligned(256)
    record = counted(twice_kernel, (2,), x, y, 512, BLOCK=128)
    assert moved(record) == bytes_of(2 * 1024, 512, 1024, 512)


def test_matmul():
    a, b, c = aligned(64, 32), aligned(32, 96), aligned(64, 96, dtype=torch.float32)
    record = counted(matmul_kernel, (2, 3), a, b, c, K=32, N=96, BLOCK=32)
    # each of 2 row blocks reads all of b, each of 3 column blocks all of a
    read, write = 2 * (3 * 64 * 32 + 2 * 32 * 96), 4 * 64 * 96
    assert moved(record) == bytes_of(read, write, 2 * (64 * 32 + 32 * 96), write)
    assert record.totals()["dot.fp16"] == 2 * 64 * 32 * 96
    assert torch.equal(c, (a.float() @ b.float()))


def test_special_functions_count_padded_lanes():
    x, y = (aligned(64, dtype=torch.float32) for _ in "xy")
    record = counted(special_kernel, (3,), x, y, BLOCK=64)
    special = {k: n for k, n in record.totals().items() if k.startswith("special.")}
    names = ("exp", "exp2", "log", "rsqrt", "div")
    assert special == {f"special.{name}": 3 * 64 for name in names}


def test_atomic_reads_and_writes():
    record = counted(add_kernel, (2,), *(aligned(64, dtype=torch.float32) for _ in "xy"), BLOCK=64)
    assert moved(record) == bytes_of(4 * 256, 2 * 256, 512, 256)


def test_a_loop_bound_read_from_memory():
    """Triton 3.6 with numpy 2.4 cannot run this without help."""
    bound = torch.tensor([3])
    record = counted(until_kernel, (1,), aligned(8), aligned(8), bound)
    assert moved(record)["requested_write"] == 3 * 2


def test_a_kernel_that_is_not_asked_for_does_not_run():
    x, y, z = aligned(1024), torch.zeros(1024, dtype=torch.float16), aligned(256)
    with counting(["twice_kernel"]) as record:
        copy_kernel[(8,)](x, y, 1024, 1, BLOCK=128)
        twice_kernel[(2,)](x, z, 512, BLOCK=128)
    assert [launch.kernel for launch in record.launches] == ["twice_kernel"]
    assert not y.any()


def test_launches_add_up_and_each_starts_cold():
    x, y = aligned(1024), aligned(1024)
    with counting() as record:
        for _ in range(3):
            copy_kernel[(8,)](x, y, 1024, 1, BLOCK=128)
    assert moved(record) == bytes_of(*[3 * 2048] * 4)
    assert record.totals()["launches"] == 3


def test_the_interpreter_is_left_as_it_was():
    before = dict(vars(InterpreterBuilder)), GridExecutor.__call__
    with counting(), pytest.raises(RuntimeError, match="nested"), counting():
        pass
    assert (dict(vars(InterpreterBuilder)), GridExecutor.__call__) == before
    x, y = aligned(128), aligned(128)
    copy_kernel[(1,)](x, y, 128, 1, BLOCK=128)


# PyTorch operations around the kernels


def test_pytorch_operations_move_bytes():
    x = aligned(64, 64)
    with counting() as record:
        x.t()  # a view is free
        torch.empty(64)
        x.t().contiguous()
        x.zero_()
        aligned_row = x[0].expand(8, 64)
        aligned_row + 1
    found = [
        (launch.kernel, launch.distinct(False), launch.counts["requested_write"])
        for launch in record.launches
    ]
    # the expanded row is read once
    assert found == [
        ("torch.clone", 8192, 8192),
        ("torch.zero_", 0, 8192),
        ("torch.add", 128, 1024),
    ]


def test_inside_of_a_custom_op_counts_and_itself_does_not():
    @torch.library.custom_op("benchmarks_test::copy_of", mutates_args=())
    def copy_of(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        copy_kernel[(8,)](x.clone(), y, 1024, 1, BLOCK=128)
        return y

    x = aligned(1024)
    with counting() as record:
        copy_of(x)
    names = [launch.kernel for launch in record.launches]
    assert names == ["torch.clone", "copy_kernel"]
    assert record.totals()["requested_read"] == 2 * 2048


# the cache


def test_a_cache_keeps_what_fits():
    x, y = aligned(512), aligned(256)
    record = counted(twice_kernel, (2,), x, y, 512, BLOCK=128)
    fits = traffic(record.launches, float("inf"))
    assert fits == (1024, 512)
    # x is 8 lines; LRU with 7 has always just lost the line that comes next
    assert traffic(record.launches, 7 * 128) == (2048, 512)
    assert traffic(record.launches, 10 * 128) == fits


def test_programs_that_advance_together_share_what_they_read():
    x, y = aligned(512), aligned(256)
    record = counted(twice_kernel, (2,), x, y, 512, BLOCK=128)
    assert traffic(record.launches, 3 * 128, resident=2) == (1024, 512)


def test_what_one_launch_wrote_the_next_finds():
    x, y, z = aligned(1024), aligned(1024), aligned(1024)
    with counting() as record:
        copy_kernel[(8,)](x, y, 1024, 1, BLOCK=128)
        copy_kernel[(8,)](y, z, 1024, 1, BLOCK=128)
    assert traffic(record.launches, float("inf")) == (2048, 4096)
    assert traffic(record.launches, 4 * 128) == (4096, 4096)


def test_programs_run_in_hardware_order():
    """The interpreter runs the last axis fastest, a GPU the first."""
    a, b, c = aligned(64, 32), aligned(32, 96), aligned(64, 96, dtype=torch.float32)
    record = counted(matmul_kernel, (2, 3), a, b, c, K=32, N=96, BLOCK=32)
    order = [access.program for access in in_order(record.launches[0].accesses, 1)]
    assert order == [program for program in range(6) for _ in range(3)]
    stores = {a.program: int(a.sectors[0]) for a in record.launches[0].accesses if a.writes}
    row_block, column_block = 32 * 96 * 4 // 32, 32 * 4 // 32
    assert stores[1] - stores[0] == row_block
    assert stores[2] - stores[0] == column_block


def test_residents_take_turns_and_are_replaced_when_they_end():
    launch = Launch("by hand")
    for program, length in enumerate((1, 3, 2)):
        launch.accesses += [Access(program, False, np.array([program]))] * length
    order = [access.program for access in in_order(launch.accesses, 2)]
    assert order == [0, 1, 2, 1, 2, 1]


def reading(programs: int, lines: list[int]) -> Launch:
    """By hand: every program reads a sector of each of these lines, one after the other."""
    launch = Launch("by hand")
    for program in range(programs):
        launch.accesses += [Access(program, False, np.array([4 * line])) for line in lines]
    return launch


def test_a_part_of_the_grid_has_its_part_of_the_places_and_of_the_cache():
    """32 programs read the same lines, a round trip of 32; a program's part of the cache is one."""
    launch = reading(32, list(range(32)))
    capacity = RESIDENT * 128.0
    # all in step: of each line the first fetches, the others find it
    assert together([launch], [32 / RESIDENT], capacity) == (32 * 32, 0)
    # 16 in step, 16 lines: the other 16 programs find nothing of what these fetched
    assert together([launch], [16 / RESIDENT], capacity) == (2 * 32 * 32, 0)
    # eight at least, of a smaller part too, and they have no less than their lines
    for share in (8 / RESIDENT, 0.1 / RESIDENT):
        assert together([launch], [share], capacity) == (4 * 32 * 32, 0)


def test_each_launch_has_its_own_part_and_begins_with_an_empty_cache():
    launches = [reading(16, list(range(16)))] * 2
    shares = [16 / RESIDENT, 8 / RESIDENT]
    # 16 in step fetch each line once; 8, with 8 lines, each line twice
    assert together(launches, shares, RESIDENT * 128.0) == ((16 + 2 * 16) * 32, 0)
