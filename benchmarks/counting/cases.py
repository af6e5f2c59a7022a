"""The cases that are counted: each call of shapes.py at sizes that suit it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from benchmarks import shapes
from benchmarks.shapes import FLOORS, Call, Floor, Prepare
from tests.contract import as_tuple


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
        part: the call works on 1/part of the model's heads and groups, which are independent.
        bounds: numbers that bound a grid, "module:NAME". Counting makes them as much smaller as the
            "size" or the "part", so that each program does as much as at the row's size.
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
    bounds: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[str, ...] | None = None
    plus: tuple[Case, ...] = ()
    ours: bool = False
    least: str | None = None

    @property
    def floor(self) -> Callable[[int], Floor]:
        name = self.name if self.least is None else self.least
        return FLOORS[name] if name else lambda _: Floor(0)

    def smaller(self, size: int) -> tuple[tuple[str, float], ...]:
        """Each of `bounds` and its factor when `size` is counted."""
        factors = {"size": size / self.size, "part": 1 / self.part}
        return tuple((name, factors[by]) for name, by in self.bounds.items())


def backward(forward: Prepare) -> Prepare:
    """The backward pass of a prepared call; the forward pass is set-up."""

    def prepare(ops: SimpleNamespace, size: int, dtype: torch.dtype) -> Call:
        run, by = forward(ops, size, dtype)
        # integer results have no gradient
        outputs = [output for output in as_tuple(run()) if output.requires_grad]
        cotangents = [torch.randn_like(output) for output in outputs]
        return Call(lambda: torch.autograd.grad(outputs, by, cotangents))

    return prepare


def steps(
    name: str, op: str, prepare: Prepare, rest: str = "", few: tuple[int, ...] = (1, 2, 3),
    many: tuple[int, ...] = (1, 2, 3), part: int = 1,
) -> Iterator[Case]:  # fmt: skip
    """A decode step at each batch, counted at `few` sequences for a batch of one."""
    for batch in (1, 8, 64):
        yield Case(
            f"{name}, batch {batch}{rest}", op, prepare, batch, few if batch == 1 else many, part,
            least=name + rest,
        )  # fmt: skip


def scans(part: int = 8) -> Iterator[Case]:
    """The forward in two kernels: chunk_scan, and with two segments chunk_state before it."""
    op, run = "mamba_chunk_scan_combined", shapes.scan_of(part)
    each = {"part": part, "bounds": {"tvkernels.ssd.kernel:PROGRAMS": "part"}}

    def forward(name: str, first: Case, ours: bool) -> Case:
        scan = {"counted": (1024, 2048), "kernels": ("chunk_scan_kernel",), "least": "scan"}
        return Case(name, op, run, 160_000, plus=(first,), ours=ours, **scan, **each)

    state = {"counted": (16_128,), "kernels": ("chunk_state_kernel",), "least": "", "ours": True}
    first = Case("scan, of that the first pass", op, run, 16_128, **state, **each)
    endless = Case("", op, shapes.scan_of(part, endless=True), 16_128, **state, **each)
    yield forward("scan", first, ours=False)
    yield first
    yield forward("scan that forgets nothing", endless, ours=True)
    # mamba-ssm gives a program as many heads as fill the processors
    processors = {"benchmarks.counting.cost:MULTIPROCESSORS": "size"}
    yield Case("scan, backward", op, backward(run), 160_000, (256, 512), part, processors)


NORMS = {"counted": (128, 256, 384), "bounds": {"tvkernels.rmsnorm.kernel:PROGRAMS": "size"}}
LANES = {"counted": (96, 192, 288), "bounds": {"tvkernels.causal_conv1d.kernel:LANES": "size"}}
# as many frames to a program as at the row's size
FRAMES = {"counted": (1, 2), "bounds": {"tvkernels.tome.kernel:PROGRAMS": "size"}}
# as many splits of the keys as at the row's size, each of whole tiles
SPLITS = {"tvkernels.gated_cross_attention.kernel:KEYS": "size"}
PROGRAMS = {"tvkernels.gated_cross_attention.kernel:PROGRAMS": "part"}
KEYS, ROWS, TOKENS = (704, 1408), (160, 320, 480), (1024, 2048, 3072)
GATED, UPDATE = "gated_cross_attention", "selective_state_update"
# at 5,000 keys a split is one tile of them
ATTEND, LONG = "prefix_attention", (5000, 10_000)
OVER = {"tvkernels.prefix_attention.kernel:KEYS": "size"}
state32, state16 = (shapes.state_update(dtype, 8) for dtype in (torch.float32, torch.float16))

CASES: tuple[Case, ...] = (
    Case("gated norm", "rmsnorm_fn", shapes.gated_norm),
    Case("gated norm, backward", "rmsnorm_fn", backward(shapes.gated_norm), **NORMS),
    Case("residual norm", "rms_norm", shapes.residual_norm),
    Case("residual norm, backward", "rms_norm", backward(shapes.residual_norm), **NORMS),
    Case("activation of the MLP", "relu2", shapes.activation),
    Case("activation of the MLP, backward", "relu2", backward(shapes.activation)),
    Case("convolution", "causal_conv1d_fn", shapes.conv),
    Case("convolution, backward", "causal_conv1d_fn", backward(shapes.conv), **LANES),
    *scans(),
    *steps("decode step of the convolution", "causal_conv1d_update", shapes.conv_update),
    *steps("decode step of the scan", UPDATE, state32, ", 32 bit state", part=8),
    *steps("decode step of the scan", UPDATE, state16, ", 16 bit state", part=8),
    Case(
        "decode step of the scan, batch 64, replayed", "replay_state_update", shapes.replayed(8),
        64, (8, 16), 8, ours=True, least="decode step of the scan, replayed",
    ),
    *steps(
        "decode step of the mixer", "mamba2_decode_step", shapes.mixer_step, few=(1,),
        many=(5, 6, 7),
    ),
    Case("token merging", "tome_merge", shapes.merge, 10_000, **FRAMES),
    Case("token merging, backward", "tome_merge", backward(shapes.merge), 10_000, (1, 2)),
    Case("transfer into the text", GATED, shapes.transfer, 80_000, KEYS, bounds=SPLITS),
    Case(
        "transfer into the text, backward", GATED, backward(shapes.transfer_of(8)), 80_000, KEYS,
        part=8, bounds=SPLITS | PROGRAMS,
    ),
    Case("text over a video", ATTEND, shapes.attend, 80_000, LONG, bounds=OVER),
    Case("answers over a video", ATTEND, shapes.attend_step, 80_000, LONG, bounds=OVER),
    Case("selection", "attention_topk", shapes.select, 80_000, TOKENS),
    Case(
        "selection from hidden states", "attention_topk_hidden", shapes.select_hidden, 80_000,
        TOKENS,
    ),
    Case("rows taken out", "compact", shapes.leave, 80_000, ROWS),
    Case("rows taken out, backward", "compact", backward(shapes.leave), 80_000, ROWS),
)  # fmt: skip
