"""The GPUs that are compiled for: their limits, and what bounds the blocks that run at once."""

from __future__ import annotations

from dataclasses import dataclass

from triton.backends.compiler import GPUTarget

__all__ = ["TARGETS", "Target"]

KIB = 1024


@dataclass(frozen=True)
class Target:
    """One GPU architecture; sizes in bytes, "unit" is an SM (NVIDIA) or a CU (AMD).

    `mma` matches the opcodes of its own matrix instructions, which a kernel with a dot must use.
    """

    name: str
    triton: GPUTarget
    shared_per_block: int
    shared_per_unit: int
    warps_per_unit: int
    blocks_per_unit: int
    registers_per_scheduler: int
    """registers of one lane that the warps of one scheduler share; every unit has four"""
    shared_reserved: int
    """taken by the system from each block's share of the unit"""
    mma: str

    @property
    def is_nvidia(self) -> bool:
        return self.triton.backend == "cuda"

    def blocks_at_once(self, registers: int, shared: int, warps: int) -> int:
        """How many blocks of `warps` warps fit one unit: a bound from registers, shared memory
        and slots, not a measurement."""
        granule = -(-max(registers, 1) // 8) * 8
        resident = min(4 * (self.registers_per_scheduler // granule), self.warps_per_unit)
        by_shared = self.blocks_per_unit
        if shared:
            by_shared = self.shared_per_unit // (shared + self.shared_reserved)
        if shared > self.shared_per_block:
            by_shared = 0
        return min(resident // warps, by_shared, self.blocks_per_unit)


def _nvidia(capability: int, shared: int, warps: int, blocks: int, mma: str) -> Target:
    """`shared` is what one block may have, in KiB; the SM has 1 KiB more, its system's share."""
    return Target(
        name=f"sm_{capability}",
        triton=GPUTarget("cuda", capability, 32),
        shared_per_block=shared * KIB,
        shared_per_unit=(shared + 1) * KIB,
        warps_per_unit=warps,
        blocks_per_unit=blocks,
        registers_per_scheduler=65536 // 4 // 32,
        shared_reserved=KIB,
        mma=mma,
    )


# limits: CUDA C++ programming guide, "technical specifications per compute capability"; for gfx942
# AMD's CDNA 3 instruction set guide
_ALL = (
    _nvidia(80, 163, 64, 32, r"[HIDB]MMA\b"),
    _nvidia(89, 99, 48, 24, r"[HIQ]MMA\b"),
    _nvidia(90, 227, 64, 32, r"[HIQB]GMMA\b"),
    _nvidia(100, 227, 64, 32, r"UTC\w*MMA\b"),
    _nvidia(120, 99, 48, 24, r"[HIQO]MMA\b"),
    Target(
        name="gfx942",
        triton=GPUTarget("hip", "gfx942", 64),
        shared_per_block=64 * KIB,
        shared_per_unit=64 * KIB,
        warps_per_unit=32,
        blocks_per_unit=32,
        registers_per_scheduler=512,
        shared_reserved=0,
        mma=r"v_s?mfma",
    ),
)
TARGETS = {target.name: target for target in _ALL}
