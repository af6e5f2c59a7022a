"""What is counted: each call of shapes.py at the sizes that suit it.

To count another op: a function and its floor in shapes.py, a case here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from benchmarks import shapes
from benchmarks.shapes import FLOORS, Call, Floor, Prepare


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Args:
        name: as it stands in the tables.
        op: the public name in tvkernels and, where it has one, in mamba-ssm.
        prepare: the call, as in shapes.py.
        size: tokens, or sequences of a decode step, that the row is about.
        counted: the sizes to count at; large enough that L2_BYTES * counted / size still holds the
            weights and what a few programs work on.
        scaled: numbers that bound a grid, "module:NAME". Counting at a smaller size makes them as
            much smaller, so that each program does as much as at the row's size.
        part: the call works on 1/part of the model's heads and groups, which are independent.
        divided: as `scaled`, for numbers that bound a grid over heads: smaller by `part` alone.
        kernels: the kernels of ours that run and are counted. None: all.
        plus: cases of ours whose counts per token are added to ours.
        ours: the peers have nothing like it.
        least: the floor's name where it is not `name`; empty where nothing need be moved.
    """

    name: str
    op: str
    prepare: Prepare
    size: int = 32_768
    counted: tuple[int, ...] = (128, 192, 256)
    part: int = 1
    scaled: tuple[str, ...] = ()
    divided: tuple[str, ...] = ()
    kernels: tuple[str, ...] | None = None
    plus: tuple[Case, ...] = ()
    ours: bool = False
    least: str | None = None

    @property
    def floor(self) -> Callable[[int], Floor]:
        name = self.name if self.least is None else self.least
        return FLOORS[name] if name else lambda _: Floor(0)


def backward(forward: Prepare) -> Prepare:
    """The backward pass of a prepared call; the forward pass is set-up."""

    def prepare(ops: SimpleNamespace, size: int, dtype: torch.dtype) -> Call:
        run, by = forward(ops, size, dtype)
        outputs = run()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        # integer results have no gradient
        outputs = [output for output in outputs if output.requires_grad]
        cotangents = [torch.randn_like(output) for output in outputs]
        return Call(lambda: torch.autograd.grad(outputs, by, cotangents))

    return prepare


def _steps(name: str, op: str, prepare: Prepare, rest: str = "", part: int = 1) -> list[Case]:
    """A decode step at each batch."""
    step = {"least": name + rest, "part": part}
    return [
        Case(f"{name}, batch {batch}{rest}", op, prepare, batch, counted=(1, 2, 3), **step)
        for batch in (1, 8, 64)
    ]


def _mixer_steps() -> list[Case]:
    name, op = "decode step of the mixer", "mamba2_decode_step"
    return [
        Case(f"{name}, batch {n}", op, shapes.mixer_step, n, counted=sizes, least=name)
        for n, sizes in ((1, (1,)), (8, (5, 6, 7)), (64, (5, 6, 7)))
    ]


def _scans(part: int = 8) -> list[Case]:
    """The forward in two kernels: chunk_scan, and with two segments chunk_state before it.

    chunk_state reads the ends of subsegments, which do not grow with the length: 16,128 tokens are
    two segments of one subsegment, 160,000 two of ten, and a subsegment is the same 8,064 tokens.
    """
    op, each = "mamba_chunk_scan_combined", {"part": part, "divided": (f"{SSD}:PROGRAMS",)}

    def before(name: str, endless: bool) -> Case:
        run = shapes.scan_of(part, endless)
        state = {"counted": (16_128,), "kernels": ("chunk_state_kernel",), "least": ""}
        return Case(name, op, run, 16_128, ours=True, **state, **each)

    def forward(name: str, first: Case, ours: bool = False) -> Case:
        scan = {"counted": (1024, 2048), "kernels": ("chunk_scan_kernel",), "least": "scan"}
        run = shapes.scan_of(part)
        return Case(name, op, run, 160_000, plus=(first,), ours=ours, **scan, **each)

    first = before("scan, of that the first pass", endless=False)
    # mamba-ssm gives a program as many heads as fill the processors
    peers = {"scaled": ("benchmarks.timing.peers:MULTIPROCESSORS",), "part": part}
    run = backward(shapes.scan_of(part))
    return [
        forward("scan", first),
        first,
        forward("scan that forgets nothing", before("", endless=True), ours=True),
        Case("scan, backward", op, run, 160_000, counted=(256, 512), **peers),
    ]


SSD = "tvkernels.ssd.kernel"
TRANSFER = "tvkernels.gated_cross_attention.kernel"
NORMS = {"counted": (128, 256, 384), "scaled": ("tvkernels.rmsnorm.kernel:PROGRAMS",)}
CONVOLUTIONS = {"counted": (96, 192, 288), "scaled": ("tvkernels.causal_conv1d.kernel:LANES",)}
# as many frames to a program as at the row's size
FRAMES = {"counted": (1, 2), "scaled": ("tvkernels.tome.kernel:PROGRAMS",)}
# as many splits of the keys as at the row's size, each of whole tiles
KEYS = {"counted": (704, 1408), "scaled": (f"{TRANSFER}:KEYS",)}
HEADS = {"part": 8, "divided": (f"{TRANSFER}:PROGRAMS",)}
ROWS = {"counted": (160, 320, 480)}
TOKENS = {"counted": (1024, 2048, 3072)}
GATED = "gated_cross_attention"
BITS = {32: torch.float32, 16: torch.float16}

CASES: tuple[Case, ...] = (
    Case("gated norm", "rmsnorm_fn", shapes.gated_norm),
    Case("gated norm, backward", "rmsnorm_fn", backward(shapes.gated_norm), **NORMS),
    Case("residual norm", "rms_norm", shapes.residual_norm),
    Case("residual norm, backward", "rms_norm", backward(shapes.residual_norm), **NORMS),
    Case("activation of the MLP", "relu2", shapes.activation),
    Case("activation of the MLP, backward", "relu2", backward(shapes.activation)),
    Case("convolution", "causal_conv1d_fn", shapes.conv),
    Case("convolution, backward", "causal_conv1d_fn", backward(shapes.conv), **CONVOLUTIONS),
    *_scans(),
    *_steps("decode step of the convolution", "causal_conv1d_update", shapes.conv_update),
    *(
        case
        for bits, dtype in BITS.items()
        for case in _steps(
            "decode step of the scan",
            "selective_state_update",
            shapes.state_update(dtype, 8),
            f", {bits} bit state",
            part=8,
        )
    ),
    *_mixer_steps(),
    Case("token merging", "tome_merge", shapes.merge, 10_000, **FRAMES),
    Case("token merging, backward", "tome_merge", backward(shapes.merge), 10_000, counted=(1, 2)),
    Case("transfer into the text", GATED, shapes.transfer, 80_000, **KEYS),
    Case(
        "transfer into the text, backward", GATED, backward(shapes.transfer_of(8)), 80_000,
        **KEYS, **HEADS,
    ),
    Case("selection", "attention_topk", shapes.select, 80_000, **TOKENS),
    Case(
        "selection from hidden states", "attention_topk_hidden", shapes.select_hidden, 80_000,
        **TOKENS,
    ),
    Case("rows taken out", "compact", shapes.leave, 80_000, **ROWS),
    Case("rows taken out, backward", "compact", backward(shapes.leave), 80_000, **ROWS),
)  # fmt: skip
