"""The rules that every build must keep; each broken one gives a sentence."""

from __future__ import annotations

from benchmarks.machine_code.builds import Build

SPILL_LIMIT = 256
"""bytes of spill stores per thread that a kernel may have on sm_90, outside its loops"""
GRID_LIMITS = (2**31 - 1, 65535, 65535)


def faults(build: Build) -> list[str]:
    """The faults of `build`; empty if it has none."""
    figures, target = build.figures, build.target
    if figures is None:
        return [f"does not compile: {build.error}"]
    found = []
    # a trap alone is no fault: sm_100 guards its tensor memory with some
    if figures.instructions < 16 or figures.global_stores == 0:
        counts = f"{figures.instructions} instructions, {figures.global_stores} global stores"
        found.append(f"is no working kernel: {counts}, {figures.traps} traps")
    least, most = (8, 255) if target.is_nvidia else (1, 512)
    if not least <= figures.registers <= most:
        found.append(f"has {figures.registers} registers")
    if build.shared > target.shared_per_block:
        found.append(
            f"needs {build.shared} B of shared memory, a block has {target.shared_per_block}"
        )
    elif build.blocks_at_once == 0:
        found.append(f"fits no block: {figures.registers} registers in {build.warps} warps")
    if build.dots and not figures.mma:
        found.append(f"has {build.dots} dots and no matrix instruction of {target.name}'s kind")
    if target.name == "sm_90":
        if figures.loop_spill_stores:
            found.append(f"stores {figures.loop_spill_stores} B of spills in a loop")
        if figures.spill_stores > SPILL_LIMIT:
            found.append(f"stores {figures.spill_stores} B of spills, {SPILL_LIMIT} are allowed")
        # the next iteration may write the registers before it waits
        if figures.running:
            running = f"{figures.running} products whose operand a lies in registers"
            found.append(f"has {running} run on over a loop's back edge: see core.tl.waited")
    for axis, size, limit in zip("xyz", build.launch.grid, GRID_LIMITS):
        if not 1 <= size <= limit:
            found.append(f"is launched on {size} blocks along {axis}, 1 to {limit} are possible")
    return found
