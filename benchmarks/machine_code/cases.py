"""The calls whose kernels are compiled: the 9B model's layers, and other uses of each op.

An op with a kernel has a line in `OP_CASES`: calls that callers may make and the model does not, so
that every kernel is launched with every switch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

import tvkernels
from benchmarks.machine_code.launches import Launch, recorded
from benchmarks.machine_code.targets import Target
from timeviper_fast.config import MAMBA, MLP, BackboneConfig
from timeviper_fast.model.cache import MambaState
from timeviper_fast.model.nemotron_h import Block
from timeviper_fast.model.stack import Packing
from timeviper_fast.presets import preset

Case = Callable[[], object]

CONFIG: BackboneConfig = preset("nemotron-nano-9b-v2").backbone
DTYPE = torch.bfloat16
# 160,000 tokens are an hour and a half of video: offsets pass 2^31, and int64 sizes change the code
TOKENS = (2048, 160_000)
BATCHES = (1, 8, 64)


def empty(*shape: int, dtype: torch.dtype = DTYPE, grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def ints(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def backward(*outs: Tensor) -> None:
    torch.autograd.backward(outs, [torch.empty_like(out) for out in outs])


# the model's calls


@lru_cache
def layer(kind: str) -> nn.Module:
    with torch.inference_mode(False), torch.device("meta"):
        return Block(kind, CONFIG).to(DTYPE)


def prefill(kind: str, tokens: int) -> None:
    state = MambaState(1, CONFIG, "meta", DTYPE) if kind == MAMBA else None
    with torch.inference_mode():
        layer(kind)(empty(1, tokens, CONFIG.hidden_size), Packing((tokens,), None), state)


def train(kind: str, tokens: int) -> None:
    """Two packed samples, and the gradients of every parameter."""
    seq_idx = ints(1, tokens)
    packing = Packing((tokens // 2,) * 2, seq_idx)
    out = layer(kind)(empty(1, tokens, CONFIG.hidden_size, grad=True), packing, None)
    backward(out)


def decode(kind: str, batch: int) -> None:
    state = MambaState(batch, CONFIG, "meta", DTYPE) if kind == MAMBA else None
    with torch.inference_mode():
        layer(kind)(empty(batch, 1, CONFIG.hidden_size), Packing((1,), None), state)


def model_cases() -> Iterator[tuple[str, Case]]:
    for kind, name in ((MAMBA, "mixer"), (MLP, "mlp")):
        for tokens in TOKENS:
            yield f"{name}, prefill {tokens}", partial(prefill, kind, tokens)
        yield f"{name}, training {TOKENS[0]}", partial(train, kind, TOKENS[0])
        for batch in BATCHES:
            yield f"{name}, decode {batch}", partial(decode, kind, batch)


# calls that the model does not make


def norms() -> Iterator[tuple[str, Case]]:
    """Gate before or behind, none, layer norm, bias; residual add; each with its backward."""
    rows, dim, group = (1, TOKENS[0]), CONFIG.d_inner, CONFIG.d_inner // CONFIG.n_groups

    def gated(gate: bool, before: bool, rms: bool) -> None:
        x, z = empty(*rows, dim, grad=True), empty(*rows, dim, grad=True)
        weight, bias = empty(dim, grad=True), empty(dim, grad=True)
        out = tvkernels.layernorm_fn(
            x, weight, None if rms else bias, z if gate else None, group_size=group,
            norm_before_gate=before, is_rms_norm=rms,
        )  # fmt: skip
        backward(out)

    def residual() -> None:
        width = CONFIG.hidden_size
        x, weight = empty(*rows, width, grad=True), empty(width, grad=True)
        outs = tvkernels.rms_norm(x, weight, CONFIG.norm_eps, empty(*rows, width, grad=True))
        backward(*outs)

    yield "rms_norm with residual", residual
    yield "rmsnorm_fn, no gate", partial(gated, False, True, True)
    yield "rmsnorm_fn, norm before gate", partial(gated, True, True, True)
    yield "layernorm_fn, gate before norm", partial(gated, True, False, False)


def activations() -> Iterator[tuple[str, Case]]:
    """relu2 of a slice of a wider product, forward and backward."""

    def slices() -> None:
        x = empty(1, TOKENS[0], 2 * CONFIG.intermediate_size, grad=True)
        y = tvkernels.relu2(x[..., : CONFIG.intermediate_size])
        backward(y)

    yield "relu2 of a slice", slices


def steps() -> Iterator[tuple[str, Case]]:
    """State of 16 bit, another headdim, a gate; rows by index; per channel, as Mamba-1 has it."""

    def heads(headdim: int, dtype: torch.dtype, indices: bool) -> None:
        batch, nheads, dstate = 8, CONFIG.mamba_num_heads, CONFIG.ssm_state_size
        x, dt = empty(batch, nheads, headdim), empty(batch, nheads, 1).expand(-1, -1, headdim)
        A = empty(nheads, 1, 1, dtype=torch.float32).expand(-1, headdim, dstate)
        D = empty(nheads, 1, dtype=torch.float32).expand(-1, headdim)
        B = empty(batch, CONFIG.n_groups, dstate)
        rows = ints(batch) if indices else None
        tvkernels.selective_state_update(
            empty(batch, nheads, headdim, dstate, dtype=dtype), x, dt, A, B, B, D, x, D, True, rows
        )

    def channels() -> None:
        batch, dim, dstate = 8, CONFIG.d_inner, 16
        x, B = empty(batch, dim), empty(batch, dstate)
        state, A = (
            empty(*shape, dtype=torch.float32) for shape in ((8, dim, dstate), (dim, dstate))
        )
        tvkernels.selective_state_update(state, x, x, A, B, B)

    yield "selective_state_update, 16 bit state", partial(heads, 80, DTYPE, False)
    yield "selective_state_update, headdim 64, indices", partial(heads, 64, torch.float32, True)
    yield "selective_state_update, per channel", channels


def convolutions() -> Iterator[tuple[str, Case]]:
    """Tokens side by side; other widths; states in and out; rings; states of packed tokens."""
    tokens, dim, width = TOKENS[0], CONFIG.conv_dim, CONFIG.conv_kernel

    def whole(width: int, by_channel: bool, states: bool, packed: bool) -> None:
        shape = (1, dim, tokens) if by_channel else (1, tokens, dim)
        x = empty(*shape, grad=True)
        x = x if by_channel else x.mT
        seq_idx = ints(1, tokens) if packed else None
        before = empty(1, width - 1, dim, grad=True).mT if states else None
        outs = tvkernels.causal_conv1d_fn(
            x, empty(dim, width, grad=True), None, seq_idx, before, states
        )
        backward(*(outs if isinstance(outs, tuple) else (outs,)))

    def update(turns: bool, rows: bool) -> None:
        index = ints(8)
        plain = not turns and not rows
        tvkernels.causal_conv1d_update(
            empty(8, 3, dim).mT, empty(16 if rows else 8, 7, dim).mT, empty(dim, width),
            empty(dim) if plain else None, "silu" if plain else None,
            index if turns else None, index if rows else None,
        )  # fmt: skip

    def varlen() -> None:
        cu_seqlens = ints(9)
        x = empty(tokens, dim, grad=True)
        states = tvkernels.causal_conv1d_varlen_states(x, cu_seqlens, width)
        backward(states)

    yield "causal_conv1d_fn, channel first", partial(whole, width, True, False, False)
    yield "causal_conv1d_fn, packed, width 2", partial(whole, 2, False, False, True)
    yield "causal_conv1d_fn with states, width 7", partial(whole, 7, False, True, False)
    yield "causal_conv1d_update", partial(update, False, False)
    yield "causal_conv1d_update, ring", partial(update, True, False)
    yield "causal_conv1d_update, named rows", partial(update, False, True)
    yield "causal_conv1d_varlen_states", varlen


def decode_steps() -> Iterator[tuple[str, Case]]:
    """A head dimension of 64; 16 bit states; rows by index and no optional argument."""

    def step(headdim: int, state: torch.dtype, bare: bool) -> None:
        batch, heads, width = BATCHES[1], CONFIG.mamba_num_heads, CONFIG.conv_kernel
        dim, d_state = heads * headdim, CONFIG.ssm_state_size
        channels = dim + 2 * CONFIG.n_groups * d_state
        tvkernels.mamba2_decode_step(
            empty(batch, dim + channels + heads),
            empty(batch, width, channels).mT,
            empty(batch, heads, headdim, d_state, dtype=state),
            ints(batch),
            empty(channels, width),
            None if bare else empty(channels),
            None if bare else empty(heads),
            empty(heads),
            None if bare else empty(heads),
            activation=None if bare else "silu",
            state_batch_indices=ints(batch) if bare else None,
        )

    yield "mamba2_decode_step, headdim 64", partial(step, 64, torch.float32, False)
    yield "mamba2_decode_step, 16 bit state", partial(step, 80, DTYPE, False)
    yield "mamba2_decode_step, rows and no more", partial(step, 80, torch.float32, True)


def scans() -> Iterator[tuple[str, Case]]:
    """Two head dimensions; a gate, D for each channel, a first state; packed sequences' states;
    strides that 32 bits do not hold."""

    def run(headdim: int, gate: bool, packed: bool, first: torch.dtype = torch.float32) -> None:
        tokens, heads = TOKENS[0], CONFIG.mamba_num_heads
        x, per_group = (
            (1, tokens, heads, headdim),
            (1, tokens, CONFIG.n_groups, CONFIG.ssm_state_size),
        )
        per_head = partial(empty, heads, dtype=torch.float32, grad=True)
        outs = tvkernels.mamba_chunk_scan_combined(
            empty(*x, grad=True),
            empty(1, tokens, heads, grad=True),
            per_head(),
            empty(*per_group, grad=True),
            empty(*per_group, grad=True),
            CONFIG.chunk_size,
            empty(heads, headdim, grad=True) if gate else per_head(),
            empty(*x, grad=True) if gate else None,
            per_head(),
            empty(1, heads, headdim, per_group[-1], dtype=first, grad=True) if gate else None,
            ints(1, tokens) if packed else None,
            ints(9) if packed else None,
            dt_softplus=True,
            return_final_states=True,
            return_varlen_states=packed,
        )
        backward(*outs)

    yield "scan, headdim 64", partial(run, 64, False, False)
    yield "scan with a gate and a first state", partial(run, CONFIG.mamba_head_dim, True, False)
    yield "scan from a 16 bit state", partial(run, 64, True, False, DTYPE)
    yield "scan of packed sequences", partial(run, CONFIG.mamba_head_dim, False, True)

    def far_apart() -> None:
        tokens, heads, headdim = TOKENS[0], CONFIG.mamba_num_heads, CONFIG.mamba_head_dim
        per_group = empty(1, tokens, CONFIG.n_groups, CONFIG.ssm_state_size)
        per_head = empty(heads, dtype=torch.float32)
        x = torch.empty_strided((1, tokens, heads, headdim), (16, 2**24, headdim, 1),
                                dtype=DTYPE, device="meta")  # fmt: skip
        tvkernels.mamba_chunk_scan_combined(
            x, empty(1, tokens, heads), per_head, per_group, per_group, CONFIG.chunk_size, per_head,
            dt_bias=per_head, dt_softplus=True,
        )  # fmt: skip

    # offsets within a chunk need 64 bits
    yield "scan of tokens far apart", far_apart


def scan_corners() -> Iterator[tuple[str, Case]]:
    """The largest states that are allowed, and float32: they must fit a target, however slow."""

    def run(headdim: int, d_state: int, dtype: torch.dtype) -> None:
        make = partial(empty, dtype=dtype, grad=True)
        x, B, dt = make(1, TOKENS[0], 8, headdim), make(1, TOKENS[0], 2, d_state), make(1, 2048, 8)
        A = empty(8, dtype=torch.float32, grad=True)
        D, first = make(8, headdim), make(1, 8, headdim, d_state)
        out = tvkernels.mamba_chunk_scan_combined(
            x, dt, A, B, B, CONFIG.chunk_size, D, x, A, first, dt_softplus=True
        )
        backward(out)

    for headdim, d_state in ((256, 256), (256, 128), (128, 256)):
        yield f"scan, {headdim} x {d_state}", partial(run, headdim, d_state, DTYPE)
    for headdim, d_state in ((256, 256), (80, 128)):
        yield f"scan, {headdim} x {d_state}, 32 bit", partial(run, headdim, d_state, torch.float32)


def merges() -> Iterator[tuple[str, Case]]:
    """Frames and clips of every vision tower, by size, and in 32 bit."""

    def merge(batch: int, seqlen: int, dim: int, left: int, order: str, dtype: torch.dtype) -> None:
        x = empty(batch, seqlen, dim, dtype=dtype, grad=True)
        tokens, _, _ = tvkernels.tome_merge(x, left, order=order)
        backward(tokens)

    yield "tome_merge, 10,000 frames", partial(merge, 10_000, 729, 1152, 16, "raw", DTYPE)
    yield "tome_merge, by size", partial(merge, 8, 256, 1024, 16, "ascending", DTYPE)
    yield "tome_merge, clips", partial(merge, 8, 1024, 1408, 64, "descending", DTYPE)
    yield "tome_merge, a few long clips", partial(merge, 8, 2916, 1152, 64, "raw", DTYPE)
    yield "tome_merge, 32 bit", partial(merge, 8, 576, 768, 16, "raw", torch.float32)


def selections() -> Iterator[tuple[str, Case]]:
    """By keys, by hidden states, normed, turned; packed, their ends on the device."""
    heads, kv_heads, headdim = (
        CONFIG.num_attention_heads,
        CONFIG.num_key_value_heads,
        CONFIG.head_dim,
    )

    def run(tokens: int, form: str, queries: int, packed: bool) -> None:
        q, width = empty(1, queries, heads, headdim), CONFIG.hidden_size
        options = {
            "keep": tokens // 8,
            "span": [(16, tokens // 2)] if packed else (16, tokens // 2),
            "cu_seqlens": ints(2) if packed else None,
        }
        if form == "keys":
            tvkernels.attention_topk(q, empty(1, tokens, kv_heads, headdim), **options)
            return
        tables = (empty(tokens, headdim), empty(tokens, headdim))
        tvkernels.attention_topk_hidden(
            q, empty(1, tokens, width), empty(kv_heads * headdim, width), **options,
            norm_weight=None if form == "hidden" else empty(width),
            rope=tables if form == "turned" else None,
        )  # fmt: skip

    yield "selection by keys", partial(run, TOKENS[1], "keys", 1, False)
    for form in ("hidden", "normed", "turned"):
        yield f"selection by {form} states", partial(run, TOKENS[1], form, 1, False)
    yield "selection of packed sequences", partial(run, TOKENS[1], "keys", 3, True)


def compactions() -> Iterator[tuple[str, Case]]:
    """A quarter of the tokens out, and their gradients back; with positions, without them."""

    def run(tokens: int, whole: bool) -> None:
        x = empty(1, tokens, CONFIG.hidden_size, grad=True)
        dropped = torch.empty(1, tokens // 4, dtype=torch.int64, device="meta")
        positions = ints(1, tokens) if whole else None
        got = tvkernels.compact(x, dropped, positions, return_dropped=whole)
        outs = [got.kept, got.dropped] if whole else [got.kept]
        backward(*outs)

    yield "rows taken out", partial(run, TOKENS[1], False)
    yield "rows taken out, with positions", partial(run, TOKENS[1], True)


def transfers() -> Iterator[tuple[str, Case]]:
    """A question, one word, packed samples; without a projection, with padded heads, large ones."""

    def run(
        n: int, m: int, headdim: int = 0, width: int = 0, packed: bool = False, grad: bool = True
    ) -> None:
        heads, kv_heads = CONFIG.num_attention_heads, CONFIG.num_key_value_heads
        headdim, width = headdim or CONFIG.head_dim, width or CONFIG.hidden_size
        bare = width == heads * headdim
        q = empty(1, n, heads, headdim, grad=grad)
        k, v = (empty(1, m, kv_heads, headdim, grad=grad) for _ in "kv")
        offsets = ints(9) if packed else None
        with torch.set_grad_enabled(grad):
            out = tvkernels.gated_cross_attention(
                empty(1, n, width, grad=grad), q, k, v, empty(1, dtype=torch.float32, grad=grad),
                out_proj=None if bare else empty(width, heads * headdim, grad=grad),
                cu_seqlens_q=offsets, cu_seqlens_k=offsets,
            )  # fmt: skip
        if grad:
            backward(out)

    yield "transfer into a question", partial(run, 64, 80_000)
    yield "transfer into a word", partial(run, 7, TOKENS[1], grad=False)
    yield "transfer in packed training", partial(run, 1600, 8 * 3700, packed=True)
    yield "transfer, no projection, headdim 80", partial(run, 64, 4096, 80, 3200)
    yield "transfer, headdim 256", partial(run, 64, 4096, 256)


OP_CASES: dict[str, Callable[[], Iterator[tuple[str, Case]]]] = {
    "attention_topk": selections,
    "causal_conv1d": convolutions,
    "compact": compactions,
    "decode_step": decode_steps,
    "gated_cross_attention": transfers,
    "rmsnorm": norms,
    "relu2": activations,
    "selective_state_update": steps,
    "ssd": scans,
    "tome": merges,
}


@lru_cache
def launches_on(target: Target) -> tuple[Launch, ...]:
    """Every distinct compilation for `target` that the cases ask for, the model's first."""
    ops = (case for op in OP_CASES.values() for case in op())
    return launches_of([*model_cases(), *ops], target)


def launches_of(cases: Iterable[tuple[str, Case]], target: Target) -> tuple[Launch, ...]:
    """Every distinct compilation for `target` that these cases ask for."""
    found: dict[str, Launch] = {}
    for name, run in cases:
        with recorded(target, name) as launches:
            run()
        for launch in launches:
            found.setdefault(launch.key, launch)
    return tuple(found.values())
