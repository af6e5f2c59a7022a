"""GPUs by name, with the figures of their vendors' data sheets.

Memory in bytes as sold (1 GB = 1e9 bytes), dense bfloat16 FLOP/s of the matrix units with float32
sums (half of a figure that is given with sparsity), and memory bandwidth. No kernel reaches them:
they make floors of time, never promises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from timeviper_fast.errors import fail

__all__ = ["GPUS", "Gpu", "find_gpu"]


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as `--gpu` takes it.
        memory: bytes.
        flops: dense bfloat16 FLOP per second; 0 if only the memory is known.
        bandwidth: bytes of memory per second; 0 if only the memory is known.
        source: title of the vendor's data sheet.
    """

    name: str
    memory: int
    flops: float = 0.0
    bandwidth: float = 0.0
    source: str = ""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("b200", 180 * 10**9, 2250e12, 8000e9, "NVIDIA DGX B200 datasheet (one of 8 GPUs)"),
        Gpu("mi300x", 192 * 10**9, 1307.4e12, 5300e9, "AMD Instinct MI300X accelerator data sheet"),
        Gpu("h200", 141 * 10**9, 989e12, 4800e9, "NVIDIA H200 Tensor Core GPU datasheet (SXM)"),
        Gpu("h100", 80 * 10**9, 989e12, 3350e9, "NVIDIA H100 Tensor Core GPU datasheet (SXM)"),
        Gpu("a100-80gb", 80 * 10**9, 312e12, 2039e9, "NVIDIA A100 Tensor Core GPU datasheet (SXM)"),
        Gpu("a100-40gb", 40 * 10**9, 312e12, 1555e9, "NVIDIA A100 Tensor Core GPU datasheet (SXM)"),
        Gpu("l40s", 48 * 10**9, 362.05e12, 864e9, "NVIDIA L40S datasheet"),
        Gpu("rtx4090", 24 * 10**9, 165.2e12, 1008e9, "NVIDIA Ada GPU Architecture, appendix A"),
        Gpu("rtx3090", 24 * 10**9, 71e12, 936e9, "NVIDIA Ampere GA102 Architecture, appendix A"),
    )
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*gb", re.IGNORECASE)


def find_gpu(text: str) -> Gpu:
    """A GPU by its name, or a memory size as 24GB (1 GB = 1e9 bytes), which has no floors.

    Raises:
        ArgumentError: of `gpu`: neither.
    """
    name = text.strip().lower()
    if name in GPUS:
        return GPUS[name]
    size = _SIZE.fullmatch(name)
    if size is None or not float(size[1]):
        fail("plan", "gpu", f"be one of {', '.join(GPUS)}, or a size as 24GB", text)
    return Gpu(name.upper().replace(" ", ""), int(float(size[1]) * 1e9))
