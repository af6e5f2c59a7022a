"""The GPUs that are compiled for: their limits, and how many blocks run at once."""

from __future__ import annotations

from dataclasses import dataclass

from triton.backends.compiler import GPUTarget

KIB = 1024
# registers of one lane that the warps of one scheduler share, on all of these; a unit has four
# schedulers
REGISTERS_PER_SCHEDULER = 512


@dataclass(frozen=True)
class Target:
    """One GPU architecture; "unit" is an SM (NVIDIA) or a CU (AMD).

    Args:
        shared_per_block: bytes of shared memory that one block may have.
        mma: matches the opcodes of its own matrix instructions, which a kernel with a dot must use.
    """

    name: str
    triton: GPUTarget
    shared_per_block: int
    warps_per_unit: int
    blocks_per_unit: int
    mma: str

    @property
    def is_nvidia(self) -> bool:
        return self.triton.backend == "cuda"

    def blocks_at_once(self, registers: int, shared: int, warps: int) -> int:
        """How many blocks of `warps` warps fit one unit: a bound from registers, shared memory
        and slots, not a measurement."""
        if shared > self.shared_per_block:
            return 0
        granule = -(-max(registers, 1) // 8) * 8
        resident = min(4 * (REGISTERS_PER_SCHEDULER // granule), self.warps_per_unit)
        # the system takes 1 KiB of NVIDIA's unit, and as much for each block
        reserved = KIB if self.is_nvidia else 0
        by_shared = self.blocks_per_unit
        if shared:
            by_shared = (self.shared_per_block + reserved) // (shared + reserved)
        return min(resident // warps, by_shared, self.blocks_per_unit)


def _nvidia(capability: int, shared: int, warps: int, blocks: int, mma: str) -> Target:
    gpu = GPUTarget("cuda", capability, 32)
    return Target(f"sm_{capability}", gpu, shared * KIB, warps, blocks, mma)


# limits: CUDA C++ programming guide, "technical specifications per compute capability"; for gfx942
# AMD's CDNA 3 instruction set guide
_ALL = (
    _nvidia(80, 163, 64, 32, r"[HIDB]MMA\b"),
    _nvidia(89, 99, 48, 24, r"[HIQ]MMA\b"),
    _nvidia(90, 227, 64, 32, r"[HIQB]GMMA\b"),
    _nvidia(100, 227, 64, 32, r"UTC\w*MMA\b"),
    _nvidia(120, 99, 48, 24, r"[HIQO]MMA\b"),
    Target("gfx942", GPUTarget("hip", "gfx942", 64), 64 * KIB, 32, 32, r"v_s?mfma"),
)
TARGETS = {target.name: target for target in _ALL}
