"""The calls whose kernels are compiled: the 9B model's layers, and other uses of each op.

An op with a kernel has a function in `OP_CASES`: calls that the model does not make and that users
may make, so that every kernel is launched with every switch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tvkernels
from benchmarks.machine_code.launches import Launch, recorded
from benchmarks.machine_code.targets import Target
from timeviper_fast.config import MAMBA, MLP, BackboneConfig
from timeviper_fast.model.mamba_state import MambaState
from timeviper_fast.model.nemotron_h import Block
from timeviper_fast.model.stack import Packing
from timeviper_fast.presets import preset

Case = tuple[str, Callable[[], object]]

CONFIG: BackboneConfig = preset("nemotron-nano-9b-v2").backbone
HIDDEN, INNER = CONFIG.hidden_size, CONFIG.d_inner
CHANNELS, TAPS = CONFIG.conv_dim, CONFIG.conv_kernel
HEADS, HEADDIM = CONFIG.mamba_num_heads, CONFIG.mamba_head_dim
GROUPS, D_STATE = CONFIG.n_groups, CONFIG.ssm_state_size
# of attention
Q_HEADS, KV_HEADS, WIDTH = CONFIG.num_attention_heads, CONFIG.num_key_value_heads, CONFIG.head_dim
# 160,000 tokens are an hour and a half of video: offsets pass 2^31, and int64 sizes change the code
TOKENS, MANY = 2048, 160_000


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


leaf = partial(empty, grad=True)
float32 = partial(empty, dtype=torch.float32)
ints = partial(empty, dtype=torch.int32)


def call(name: str, op: Callable[..., object], *args: object, **options: object) -> Case:
    """A case of a public op; where its arguments want gradients, with its backward pass."""

    def run() -> None:
        outs = [out for out in tree_leaves(op(*args, **options)) if isinstance(out, Tensor)]
        outs = [out for out in outs if out.requires_grad]
        torch.autograd.backward(outs, [torch.empty_like(out) for out in outs])

    return name, run


@lru_cache
def layer(kind: str) -> nn.Module:
    with torch.inference_mode(False), torch.device("meta"):
        return Block(kind, CONFIG).to(torch.bfloat16)


def infer(kind: str, batch: int, tokens: int) -> None:
    """A prefill, or a decode step of one token."""
    state = MambaState(batch, CONFIG, "meta", torch.bfloat16) if kind == MAMBA else None
    with torch.inference_mode():
        layer(kind)(empty(batch, tokens, HIDDEN), Packing((tokens,), None), state)


def train(kind: str, tokens: int) -> None:
    """Two packed samples, and the gradients of every parameter."""
    packing = Packing((tokens // 2,) * 2, ints(1, tokens))
    out = layer(kind)(leaf(1, tokens, HIDDEN), packing, None)
    out.backward(torch.empty_like(out))


def model_cases() -> Iterator[Case]:
    for kind, name in ((MAMBA, "mixer"), (MLP, "mlp")):
        for tokens in (TOKENS, MANY):
            yield f"{name}, prefill {tokens}", partial(infer, kind, 1, tokens)
        yield f"{name}, training {TOKENS}", partial(train, kind, TOKENS)
        for batch in (1, 8, 64):
            yield f"{name}, decode {batch}", partial(infer, kind, batch, 1)


def norms() -> Iterator[Case]:
    """Gate before or behind, none, layer norm, bias; residual add; each with its backward."""
    narrow, wide = leaf(1, TOKENS, HIDDEN), leaf(1, TOKENS, INNER)
    weight = leaf(INNER)
    norm = partial(tvkernels.layernorm_fn, wide, weight, group_size=INNER // GROUPS)
    rms, residual = partial(norm, None, is_rms_norm=True), partial(tvkernels.rms_norm, narrow)
    yield call("rms_norm with residual", residual, leaf(HIDDEN), CONFIG.norm_eps, narrow)
    yield call("rmsnorm_fn, no gate", rms)
    yield call("rmsnorm_fn, norm before gate", rms, wide)
    yield call("layernorm_fn, gate before norm", norm, leaf(INNER), wide, norm_before_gate=False)


def activations() -> Iterator[Case]:
    """relu2 of a slice of a wider product, forward and backward."""
    wide = leaf(1, TOKENS, 2 * CONFIG.intermediate_size)
    yield call("relu2 of a slice", tvkernels.relu2, wide[..., : CONFIG.intermediate_size])


def steps() -> Iterator[Case]:
    """State of 16 bit, another headdim, a gate; rows by index; per channel, as Mamba-1 has it."""
    update = tvkernels.selective_state_update

    def heads(name: str, headdim: int, dtype: torch.dtype, rows: Tensor | None) -> Case:
        state, B = empty(8, HEADS, headdim, D_STATE, dtype=dtype), empty(8, GROUPS, D_STATE)
        x, dt = empty(8, HEADS, headdim), empty(8, HEADS, 1).expand(-1, -1, headdim)
        A = float32(HEADS, 1, 1).expand(-1, headdim, D_STATE)
        D = float32(HEADS, 1).expand(-1, headdim)
        return call(name, update, state, x, dt, A, B, B, D, x, D, True, rows)

    yield heads("selective_state_update, 16 bit state", 80, torch.bfloat16, None)
    yield heads("selective_state_update, headdim 64, indices", 64, torch.float32, ints(8))
    state, A, x, B = float32(8, INNER, 16), float32(INNER, 16), empty(8, INNER), empty(8, 16)
    yield call("selective_state_update, per channel", update, state, x, x, A, B, B)


def replays() -> Iterator[Case]:
    """One token; several with every option left out; another headdim and rows; a flush."""

    def held(headdim: int, rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        return (
            empty(rows, HEADS, headdim, D_STATE, dtype=dtype),
            empty(rows, 16, HEADS, headdim), float32(rows, 16, HEADS, 2),
            empty(rows, 16, GROUPS, D_STATE), ints(rows, HEADS), ints(8),
        )  # fmt: skip

    def step(name: str, seqlen: int, kept: tuple[Tensor, ...], **options: object) -> Case:
        x, dt = empty(8, seqlen, HEADS, kept[0].shape[2]), empty(8, seqlen, HEADS)
        B, A = empty(8, seqlen, GROUPS, D_STATE), float32(HEADS)
        given = {"z": x, "D": A, "dt_bias": A, "dt_softplus": True} if seqlen == 1 else {}
        update = tvkernels.replay_state_update
        return call(name, update, *kept, x, dt, A, B, B, **given, **options)

    yield step("replay_state_update", 1, held(80, 8))
    rows = {"state_batch_indices": ints(8)}
    yield step("replay_state_update, headdim 64, rows", 1, held(64, 16), **rows)
    yield step("replay_state_update, 4 tokens, 16 bit state", 4, held(80, 8, torch.bfloat16))
    yield call("replay_flush", tvkernels.replay_flush, *held(80, 8))


def convolutions() -> Iterator[Case]:
    """Tokens side by side; other widths; states in and out; rings; states of packed tokens."""
    whole, x = tvkernels.causal_conv1d_fn, leaf(1, TOKENS, CHANNELS).mT
    states = {"initial_states": leaf(1, 6, CHANNELS).mT, "return_final_states": True}
    channel_first, packed = leaf(1, CHANNELS, TOKENS), {"seq_idx": ints(1, TOKENS)}
    yield call("causal_conv1d_fn, channel first", whole, channel_first, leaf(CHANNELS, TAPS))
    yield call("causal_conv1d_fn, packed, width 2", whole, x, leaf(CHANNELS, 2), **packed)
    yield call("causal_conv1d_fn with states, width 7", whole, x, leaf(CHANNELS, 7), **states)

    def step(name: str, rows: int = 8, *extra: object, **options: object) -> Case:
        state, weight = empty(rows, 7, CHANNELS).mT, empty(CHANNELS, TAPS)
        x = empty(8, 3, CHANNELS).mT
        return call(name, tvkernels.causal_conv1d_update, x, state, weight, *extra, **options)

    yield step("causal_conv1d_update", 8, empty(CHANNELS), "silu")
    yield step("causal_conv1d_update, ring", cache_seqlens=ints(8))
    yield step("causal_conv1d_update, named rows", 16, conv_state_indices=ints(8))
    ends = tvkernels.causal_conv1d_varlen_states
    yield call("causal_conv1d_varlen_states", ends, leaf(TOKENS, CHANNELS), ints(9), TAPS)


def decode_steps() -> Iterator[Case]:
    """A head dimension of 64; 16 bit states; rows by index and no optional argument."""

    def step(name: str, headdim: int, state: torch.dtype, bare: bool = False) -> Case:
        dim = HEADS * headdim
        channels = dim + 2 * GROUPS * D_STATE
        per_head = None if bare else empty(HEADS)
        return call(
            name, tvkernels.mamba2_decode_step, empty(8, dim + channels + HEADS),
            empty(8, TAPS, channels).mT, empty(8, HEADS, headdim, D_STATE, dtype=state), ints(8),
            empty(channels, TAPS), None if bare else empty(channels), per_head, empty(HEADS),
            per_head, activation=None if bare else "silu",
            state_batch_indices=ints(8) if bare else None,
        )  # fmt: skip

    yield step("mamba2_decode_step, headdim 64", 64, torch.float32)
    yield step("mamba2_decode_step, 16 bit state", 80, torch.bfloat16)
    yield step("mamba2_decode_step, rows and no more", 80, torch.float32, bare=True)


def scans() -> Iterator[Case]:
    """Two head dimensions; a gate, D for each channel, a first state; packed sequences' states;
    strides that 32 bits do not hold."""
    op = partial(tvkernels.mamba_chunk_scan_combined, dt_softplus=True)
    B, per_head = leaf(1, TOKENS, GROUPS, D_STATE), float32(HEADS, grad=True)

    def scan(name: str, headdim: int, **options: object) -> Case:
        x, dt = leaf(1, TOKENS, HEADS, headdim), leaf(1, TOKENS, HEADS)
        given = {"D": per_head, "dt_bias": per_head, "return_final_states": True} | options
        return call(name, op, x, dt, per_head, B, B, CONFIG.chunk_size, **given)

    def gated(headdim: int, first: torch.dtype) -> dict[str, Tensor]:
        state = empty(1, HEADS, headdim, D_STATE, dtype=first, grad=True)
        z = leaf(1, TOKENS, HEADS, headdim)
        return {"D": leaf(HEADS, headdim), "z": z, "initial_states": state}

    packed = {"seq_idx": ints(1, TOKENS), "cu_seqlens": ints(9), "return_varlen_states": True}
    yield scan("scan, headdim 64", 64)
    yield scan("scan with a gate and a first state", HEADDIM, **gated(HEADDIM, torch.float32))
    yield scan("scan from a 16 bit state", 64, **gated(64, torch.bfloat16))
    yield scan("scan of packed sequences", HEADDIM, **packed)
    # offsets within a chunk need 64 bits
    shape, strides = (1, TOKENS, HEADS, HEADDIM), (16, 2**24, HEADDIM, 1)
    x = torch.empty_strided(shape, strides, dtype=torch.bfloat16, device="meta")
    dt, A, B = empty(1, TOKENS, HEADS), float32(HEADS), empty(1, TOKENS, GROUPS, D_STATE)
    far_apart = partial(op, x, dt, A, B, B, CONFIG.chunk_size)
    yield call("scan of tokens far apart", far_apart, D=A, dt_bias=A)


def scan_corners() -> Iterator[Case]:
    """The largest states that are allowed, and float32: they must fit a target, however slow."""

    def scan(name: str, headdim: int, d_state: int, dtype: torch.dtype = torch.bfloat16) -> Case:
        make = partial(leaf, dtype=dtype)
        x, B, dt = make(1, TOKENS, 8, headdim), make(1, TOKENS, 2, d_state), make(1, TOKENS, 8)
        A, D, first = float32(8), make(8, headdim), make(1, 8, headdim, d_state)
        op = partial(tvkernels.mamba_chunk_scan_combined, dt_softplus=True)
        return call(name, op, x, dt, A, B, B, CONFIG.chunk_size, D, x, A, first)

    yield scan("scan, 256 x 256", 256, 256)
    yield scan("scan, 256 x 128", 256, 128)
    yield scan("scan, 128 x 256", 128, 256)
    yield scan("scan, 256 x 256, 32 bit", 256, 256, torch.float32)
    yield scan("scan, 80 x 128, 32 bit", 80, 128, torch.float32)


def merges() -> Iterator[Case]:
    """Frames and clips of every vision tower, by size, and in 32 bit."""
    merge, single = tvkernels.tome_merge, leaf(8, 576, 768, dtype=torch.float32)
    yield call("tome_merge, 10,000 frames", merge, leaf(10_000, 729, 1152), 16)
    yield call("tome_merge, by size", merge, leaf(8, 256, 1024), 16, order="ascending")
    yield call("tome_merge, clips", merge, leaf(8, 1024, 1408), 64, order="descending")
    yield call("tome_merge, a few long clips", merge, leaf(8, 2916, 1152), 64)
    yield call("tome_merge, 32 bit", merge, single, 16)


def selections() -> Iterator[Case]:
    """By keys, by hidden states, normed, turned; packed, their ends on the device."""
    q, keys = empty(1, 1, Q_HEADS, WIDTH), empty(1, MANY, KV_HEADS, WIDTH)
    keep, span = MANY // 8, (16, MANY // 2)
    yield call("selection by keys", tvkernels.attention_topk, q, keys, keep, span)
    hidden, weight = empty(1, MANY, HIDDEN), empty(KV_HEADS * WIDTH, HIDDEN)
    by_states = partial(tvkernels.attention_topk_hidden, q, hidden, weight, keep, span)
    normed = partial(by_states, norm_weight=empty(HIDDEN))
    yield call("selection by hidden states", by_states)
    yield call("selection by normed states", normed)
    turned = {"rope": (empty(MANY, WIDTH),) * 2, "k_bias": empty(KV_HEADS * WIDTH)}
    yield call("selection by turned states", normed, **turned)
    packed = partial(tvkernels.attention_topk, empty(1, 3, Q_HEADS, WIDTH), keys, keep, [span])
    yield call("selection of packed sequences", packed, cu_seqlens=ints(2))


def compactions() -> Iterator[Case]:
    """A quarter of the tokens out, and their gradients back; with positions, without them."""
    x, dropped = leaf(1, MANY, HIDDEN), empty(1, MANY // 4, dtype=torch.int64)
    with_positions = partial(tvkernels.compact, positions=ints(1, MANY), return_dropped=True)
    yield call("rows taken out", tvkernels.compact, x, dropped)
    yield call("rows taken out, with positions", with_positions, x, dropped)


def transfers() -> Iterator[Case]:
    """A question, one word, packed samples; without a projection, with padded heads, large ones."""

    def transfer(
        name: str, n: int, m: int, headdim: int = WIDTH, width: int = HIDDEN,
        grad: bool = True, offsets: Tensor | None = None,
    ) -> Case:  # fmt: skip
        make = partial(empty, grad=grad)
        q, k = make(1, n, Q_HEADS, headdim), make(1, m, KV_HEADS, headdim)
        bare = width == Q_HEADS * headdim
        return call(
            name, tvkernels.gated_cross_attention, make(1, n, width), q, k, k,
            make(1, dtype=torch.float32), out_proj=None if bare else make(width, Q_HEADS * headdim),
            cu_seqlens_q=offsets, cu_seqlens_k=offsets,
        )  # fmt: skip

    yield transfer("transfer into a question", 64, 80_000)
    yield transfer("transfer into a word", 7, MANY, grad=False)
    yield transfer("transfer in packed training", 1600, 8 * 3700, offsets=ints(9))
    yield transfer("transfer, no projection, headdim 80", 64, 4096, 80, 3200)
    yield transfer("transfer, headdim 256", 64, 4096, 256)


def prefixes() -> Iterator[Case]:
    """Eight answers about one video, a question's text, tails alone, padded heads, large ones."""

    def attend(
        name: str, batch: int, n: int, capacity: int, m: int = 0, headdim: int = WIDTH
    ) -> Case:
        tail, shared = (empty(*x, KV_HEADS, headdim) for x in ((batch, capacity), (1, m)))
        q, prefix = empty(batch, n, Q_HEADS, headdim), (shared, shared) if m else None
        return call(name, tvkernels.prefix_attention, q, tail, tail, ints(batch), prefix)

    yield attend("decode of 8 answers about a video", 8, 1, 320, 80_000)
    yield attend("text about a video", 1, 60, 60, MANY)
    yield attend("decode of 8 tails alone", 8, 1, 16_384)
    yield attend("prefix attention, headdim 80", 2, 7, 64, 4096, 80)
    yield attend("prefix attention, headdim 256", 2, 7, 64, 4096, 256)


OP_CASES = (
    selections, convolutions, compactions, decode_steps, transfers, prefixes, norms, activations,
    steps, replays, scans, merges,
)  # fmt: skip


@lru_cache
def launches_on(target: Target) -> tuple[Launch, ...]:
    """Every distinct compilation for `target` that the cases ask for, the model's first."""
    ops = (case for op in OP_CASES for case in op())
    return launches_of([*model_cases(), *ops], target)


def launches_of(cases: Iterable[Case], target: Target) -> tuple[Launch, ...]:
    """Every distinct compilation for `target` that these cases ask for."""
    found: dict[str, Launch] = {}
    for name, run in cases:
        with recorded(target, name) as launches:
            run()
        for launch in launches:
            found.setdefault(launch.key, launch)
    return tuple(found.values())
