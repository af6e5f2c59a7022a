"""The shapes that count: TimeViper's 9B language model, and the least that each op has to move.

A case names an op, how to prepare one call of it at a given size, and its floor. To add an op:
write one function that prepares a call, and one line in CASES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

# what a well written kernel reaches on one H200, not the data sheet; the L2 is the data sheet's
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 790e12
L2_BYTES = 50e6

HIDDEN, MLP = 4480, 15680
NHEADS, HEADDIM, NGROUPS, D_STATE, WIDTH = 128, 80, 8, 128, 4
D_INNER = NHEADS * HEADDIM  # 10240
CONV_CHANNELS = D_INNER + 2 * NGROUPS * D_STATE  # 12288
IN_PROJ = D_INNER + CONV_CHANNELS + NHEADS  # 22656: gate, then x B C, then dt
EPS = 1e-5
CHUNK = 256  # what TimeViper asks mamba-ssm for, and the quicker one there


class Floor(NamedTuple):
    """The least bytes from and to memory, and the useful products and sums of matrix products."""

    bytes: float
    flops: float = 0.0

    def seconds(self) -> float:
        return max(self.bytes / BYTES_PER_SECOND, self.flops / FLOPS_PER_SECOND)


class Call(NamedTuple):
    """What to look at, and the tensors to differentiate it by."""

    run: Callable[[], Any]
    by: tuple[Tensor, ...] = ()


# (functions of a provider, size, dtype), and where there is a batch beside the size, batch=
Prepare = Callable[..., Call]


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Args:
        name: as it stands in the tables.
        op: the public name in tvkernels and, where it has one, in mamba-ssm.
        prepare: (functions of a provider, size, 16 bit dtype) -> the call to look at; what
            preparing does itself is set-up.
        floor: from a size to the least that call can move and compute.
        size: tokens, or sequences of a decode step, that the row is about.
        counted: the sizes to count at; large enough that L2_BYTES * counted / size still holds the
            weights and what a few programs work on.
        scaled: numbers that bound a grid, "module:NAME". While counting at a smaller size they are
            as much smaller, so that each program does what it would do.
        part: the call works on 1/part of the model's heads and groups, which are independent.
        divided: numbers as in `scaled` that bound a grid over heads: smaller by the part alone.
        kernels: of ours, those that are counted; the others do not run. None: all.
        plus: cases of ours whose counts per token are added to ours.
        ours: the peers have nothing like it.
    """

    name: str
    op: str
    prepare: Prepare
    floor: Callable[[int], Floor]
    size: int = 32_768
    counted: tuple[int, ...] = (128, 192, 256)
    part: int = 1
    scaled: tuple[str, ...] = ()
    divided: tuple[str, ...] = ()
    kernels: tuple[str, ...] | None = None
    plus: tuple[Case, ...] = ()
    ours: bool = False


# preparing one call


def gated_norm(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    """y from the scan, and the gate as a slice of in_proj's output."""
    y = torch.randn(batch, tokens, D_INNER, dtype=dtype).requires_grad_()
    gate = torch.randn(batch, tokens, IN_PROJ, dtype=dtype)[..., :D_INNER].requires_grad_()
    weight = torch.ones(D_INNER, dtype=dtype).requires_grad_()
    options = (EPS, D_INNER // NGROUPS, False)
    return Call(lambda: ops.rmsnorm_fn(y, weight, None, gate, *options), (y, weight, gate))


def residual_norm(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    shape = (batch, tokens, HIDDEN)
    x, residual = (torch.randn(shape, dtype=dtype).requires_grad_() for _ in "xr")
    weight = torch.ones(HIDDEN, dtype=dtype).requires_grad_()
    return Call(lambda: ops.rms_norm(x, weight, EPS, residual), (x, weight, residual))


def activation(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    x = torch.randn(batch, tokens, MLP, dtype=dtype).requires_grad_()
    return Call(lambda: ops.relu2(x), (x,))


def conv(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    """x, B and C as the slice of in_proj's output that they are; a stride of 22656 per token."""
    packed = torch.randn(batch, tokens, IN_PROJ, dtype=dtype)
    x = packed[..., D_INNER : D_INNER + CONV_CHANNELS].mT.requires_grad_()
    weight = torch.randn(CONV_CHANNELS, WIDTH, dtype=dtype).requires_grad_()
    bias = torch.randn(CONV_CHANNELS, dtype=dtype).requires_grad_()
    by = (x, weight, bias)
    return Call(lambda: ops.causal_conv1d_fn(x, weight, bias, activation="silu"), by)


def conv_update(ops: SimpleNamespace, batch: int, dtype: torch.dtype) -> Call:
    """One decode step; the state is the cache's, which keeps as many columns as there are taps."""
    x = torch.randn(batch, IN_PROJ, dtype=dtype)[:, D_INNER : D_INNER + CONV_CHANNELS]
    weight = torch.randn(CONV_CHANNELS, WIDTH, dtype=dtype)
    bias = torch.randn(CONV_CHANNELS, dtype=dtype)
    state = torch.randn(batch, CONV_CHANNELS, WIDTH, dtype=dtype)
    return Call(lambda: ops.causal_conv1d_update(x, state, weight, bias, "silu"))


def state_update(state_dtype: torch.dtype, part: int) -> Prepare:
    """One decode step with the strides of the model: A, dt, dt_bias and D expanded over a head."""

    def prepare(ops: SimpleNamespace, batch: int, dtype: torch.dtype) -> Call:
        nheads, ngroups = NHEADS // part, NGROUPS // part
        packed = torch.randn(batch, IN_PROJ, dtype=dtype)
        x, B, C, dt = packed[:, D_INNER:].split(
            [D_INNER, NGROUPS * D_STATE, NGROUPS * D_STATE, NHEADS], dim=-1
        )
        x = x.unflatten(-1, (NHEADS, HEADDIM))[:, :nheads]
        B, C = (t.unflatten(-1, (NGROUPS, D_STATE))[:, :ngroups] for t in (B, C))
        dt = dt[:, :nheads, None].expand(-1, -1, HEADDIM)
        A = torch.full((nheads,), -1.0)[:, None, None].expand(-1, HEADDIM, D_STATE)
        D, dt_bias = torch.ones(2, nheads)[..., None].expand(-1, -1, HEADDIM).unbind()
        state = torch.randn(batch, nheads, HEADDIM, D_STATE).to(state_dtype)
        options = {"D": D, "dt_bias": dt_bias, "dt_softplus": True}
        return Call(lambda: ops.selective_state_update(state, x, dt, A, B, C, **options))

    return prepare


def mixer_step(ops: SimpleNamespace, batch: int, dtype: torch.dtype) -> Call:
    """The model's whole decode step: convolution, scan and gate, in place on the cache's states."""
    row = torch.randn(batch, IN_PROJ, dtype=dtype)
    ring = torch.randn(batch, WIDTH, CONV_CHANNELS, dtype=dtype).mT
    state = torch.randn(batch, NHEADS, HEADDIM, D_STATE)
    position = torch.full((batch,), 5, dtype=torch.int32)
    weight = torch.randn(CONV_CHANNELS, WIDTH, dtype=dtype)
    bias = torch.randn(CONV_CHANNELS, dtype=dtype)
    dt_bias, A_log, D = torch.zeros(3, NHEADS, dtype=dtype)
    parameters = (weight, bias, dt_bias, A_log, D)
    return Call(lambda: ops.mamba2_decode_step(row, ring, state, position, *parameters))


def scan_of(part: int = 1, endless: bool = False) -> Prepare:
    """The scan of 1/part of the heads, of steps and decays as the family draws them.

    endless: decays so weak that every token counts to the end.
    """

    def prepare(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
        """x, B, C as the convolution leaves them, dt as the last columns of in_proj's output."""
        nheads, ngroups = NHEADS // part, NGROUPS // part
        mixed = torch.randn(batch, tokens, CONV_CHANNELS, dtype=dtype)
        x, B, C = mixed.split([D_INNER, NGROUPS * D_STATE, NGROUPS * D_STATE], dim=-1)
        x = x.unflatten(-1, (NHEADS, HEADDIM))[:, :, :nheads].requires_grad_()
        B, C = (
            t.unflatten(-1, (NGROUPS, D_STATE))[:, :, :ngroups].requires_grad_() for t in (B, C)
        )
        packed = torch.empty(batch, tokens, IN_PROJ, dtype=dtype)
        dt = packed[..., -NHEADS:].normal_(std=0.1)[..., :nheads].requires_grad_()
        # a step log-uniform in [1e-3, 0.1], A uniform in [-16, -1]: spread evenly over the heads,
        # in step with each other in no way, so that a few heads are like all
        head = torch.arange(nheads, dtype=torch.float32)
        step = 10 ** (-3 + 2 * (head + 0.5) / nheads)
        dt_bias = torch.log(torch.expm1(step)).requires_grad_()
        A = -(1 + 15 * (head * 0.618034 % 1)) * (1e-9 if endless else 1)
        A = A.requires_grad_()
        D = torch.ones(nheads).requires_grad_()
        options = {"D": D, "dt_bias": dt_bias, "dt_softplus": True, "return_final_states": True}
        return Call(
            lambda: ops.mamba_chunk_scan_combined(x, dt, A, B, C, CHUNK, **options),
            (x, dt, A, B, C, D, dt_bias),
        )

    return prepare


scan = scan_of()


def backward(forward: Prepare) -> Prepare:
    """The backward pass of a prepared call; the forward pass is set-up."""

    def prepare(ops: SimpleNamespace, size: int, dtype: torch.dtype) -> Call:
        run, by = forward(ops, size, dtype)
        outputs = run()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        # sizes and slots have no gradient
        outputs = [output for output in outputs if output.requires_grad]
        cotangents = [torch.randn_like(output) for output in outputs]
        return Call(lambda: torch.autograd.grad(outputs, by, cotangents))

    return prepare


# the floors: tensors of 2 bytes an element unless said, weights once


def _rows(width: int, tensors: int, weights: int = 0) -> Callable[[int], Floor]:
    return lambda tokens: Floor(2 * (width * tensors * tokens + weights))


def scan_floor(tokens: int) -> Floor:
    """x, B, C, dt in, y out; products at chunks of 128: C B per group, then three per head."""
    wide = 2 * D_INNER + 2 * NGROUPS * D_STATE + NHEADS
    products = 2 * 128 * D_STATE * NGROUPS + 2 * D_INNER * (128 + 2 * D_STATE)
    return Floor(2 * wide * tokens, products * tokens)


def scan_backward_floor(tokens: int) -> Floor:
    """x, B, C, dt and dy in, dx, dB, dC, ddt out; 19.1 MFLOP of products per token."""
    wide = 3 * D_INNER + 4 * NGROUPS * D_STATE + 2 * NHEADS
    return Floor(2 * wide * tokens, 19.1e6 * tokens)


def _state_update_floor(state_bytes: int) -> Callable[[int], Floor]:
    """The state in and out; x in and y out, B, C, dt; A, D and dt_bias (float32) of each head."""
    per_sequence = 2 * state_bytes * D_INNER * D_STATE
    per_sequence += 2 * (2 * D_INNER + 2 * NGROUPS * D_STATE + NHEADS)
    return lambda batch: Floor(per_sequence * batch + 3 * 4 * NHEADS)


def _mixer_step_floor(batch: int) -> Floor:
    """The state in and out; of the ring what taps look back on in, one column out; the row and its
    place in, y out; the parameters once."""
    ring, row = 2 * CONV_CHANNELS * WIDTH, 2 * (IN_PROJ + D_INNER) + 4
    parameters = 2 * (CONV_CHANNELS * (WIDTH + 1) + 3 * NHEADS)
    return Floor((2 * 4 * D_INNER * D_STATE + ring + row) * batch + parameters)


def _mixer_step_cases() -> list[Case]:
    return [
        Case(
            f"decode step of the mixer, batch {batch}",
            "mamba2_decode_step",
            mixer_step,
            _mixer_step_floor,
            size=batch,
            counted=(batch,) if batch == 1 else (5, 6, 7),
        )
        for batch in (1, 8, 64)
    ]


def _conv_update_cases() -> list[Case]:
    """x and the state in, y and the state out; the taps and the bias once."""
    return [
        Case(
            f"decode step of the convolution, batch {batch}",
            "causal_conv1d_update",
            conv_update,
            _rows(CONV_CHANNELS, 2 + 2 * WIDTH, CONV_CHANNELS * (WIDTH + 1)),
            size=batch,
            counted=(1, 2, 3),
        )
        for batch in (1, 8, 64)
    ]


def _state_update_cases(part: int = 8) -> list[Case]:
    return [
        Case(
            f"decode step of the scan, batch {batch}, {8 * dtype.itemsize} bit state",
            "selective_state_update",
            prepare,
            _state_update_floor(dtype.itemsize),
            size=batch,
            counted=(1, 2, 3),
            part=part,
        )
        for dtype in (torch.float32, torch.float16)
        for prepare in [state_update(dtype, part)]
        for batch in (1, 8, 64)
    ]


def _scan_cases(part: int = 8) -> list[Case]:
    """The forward in two kernels: chunk_scan, and with two segments chunk_state before it.

    chunk_state reads the ends of subsegments, which do not grow with the length: 16,128 tokens are
    two segments of one subsegment, 160,000 two of ten, and a subsegment is the same 8,064 tokens.
    """
    op, grid = "mamba_chunk_scan_combined", ("tvkernels.ssd.kernel:PROGRAMS",)

    def before(name: str, endless: bool) -> Case:
        return Case(
            name,
            op,
            scan_of(part, endless),
            lambda _: Floor(0),
            size=16_128,
            counted=(16_128,),
            part=part,
            divided=grid,
            kernels=("chunk_state_kernel",),
            ours=True,
        )

    def forward(name: str, first: Case, ours: bool = False) -> Case:
        return Case(
            name,
            op,
            scan_of(part),
            scan_floor,
            size=160_000,
            counted=(1024, 2048),
            part=part,
            divided=grid,
            kernels=("chunk_scan_kernel",),
            plus=(first,),
            ours=ours,
        )

    first = before("scan, of that the first pass", endless=False)
    return [
        forward("scan", first),
        first,
        forward("scan that forgets nothing", before("", endless=True), ours=True),
        Case(
            "scan, backward",
            op,
            backward(scan_of(part)),
            scan_backward_floor,
            size=160_000,
            counted=(256, 512),
            part=part,
            # mamba-ssm gives a program as many heads as fill the processors
            scaled=("benchmarks.timing.peers:MULTIPROCESSORS",),
        ),
    ]


NORM_GRID = ("tvkernels.rmsnorm.kernel:PROGRAMS",)
CONV_GRID = ("tvkernels.causal_conv1d.kernel:LANES",)
CASES: tuple[Case, ...] = (
    Case("gated norm", "rmsnorm_fn", gated_norm, _rows(D_INNER, 3, D_INNER)),
    Case(
        "gated norm, backward",
        "rmsnorm_fn",
        backward(gated_norm),
        _rows(D_INNER, 5, 2 * D_INNER),
        counted=(128, 256, 384),
        scaled=NORM_GRID,
    ),
    Case("residual norm", "rms_norm", residual_norm, _rows(HIDDEN, 4, HIDDEN)),
    Case(
        "residual norm, backward",
        "rms_norm",
        backward(residual_norm),
        _rows(HIDDEN, 4, 2 * HIDDEN),
        counted=(128, 256, 384),
        scaled=NORM_GRID,
    ),
    Case("activation of the MLP", "relu2", activation, _rows(MLP, 2)),
    Case("activation of the MLP, backward", "relu2", backward(activation), _rows(MLP, 3)),
    Case(
        "convolution",
        "causal_conv1d_fn",
        conv,
        _rows(CONV_CHANNELS, 2, CONV_CHANNELS * (WIDTH + 1)),
    ),
    Case(
        "convolution, backward",
        "causal_conv1d_fn",
        backward(conv),
        _rows(CONV_CHANNELS, 3, 2 * CONV_CHANNELS * (WIDTH + 1)),
        counted=(96, 192, 288),
        scaled=CONV_GRID,
    ),
    *_scan_cases(),
    *_conv_update_cases(),
    *_state_update_cases(),
    *_mixer_step_cases(),
)
