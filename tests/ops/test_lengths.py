"""A new length compiles and tunes nothing, and training keeps nothing: seen on launches that never run.

On meta tensors, at the size of the 9B model; Triton's own binder says what each launch would compile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tvkernels
from tests.interpreter import INTERPRETED

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None or INTERPRETED, reason="needs Triton, and not its interpreter"
)

Call = Callable[[int], object]
# odd lengths, multiples of 16, lengths shorter than a chunk, lengths past 2^31 elements. Triton
# specialises an argument of value 1 as a constant unless it is told not to
LENGTHS = (1, 2, 17, 100, 2047, 2048, 4095, 94_800, 160_000, 160_001)
HEADS, HEADDIM, GROUPS, D_STATE, COLUMNS = 128, 80, 8, 128, 22656


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta").requires_grad_(grad)


def ints(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def scan_arguments(tokens: int, batch: int, gate: bool, packed: bool) -> dict[str, Any]:
    """Slices of what the projection and the convolution leave, as the mixer hands them over."""
    z, _, dt = empty(batch, tokens, COLUMNS, grad=False).split([10240, 12288, 128], -1)
    x, B, C = empty(batch, tokens, 12288, grad=False).split([10240, 1024, 1024], -1)
    made = {
        "x": x.unflatten(-1, (HEADS, HEADDIM)), "dt": dt, "A": empty(HEADS, dtype=torch.float32),
        "B": B.unflatten(-1, (GROUPS, D_STATE)), "C": C.unflatten(-1, (GROUPS, D_STATE)),
        "chunk_size": 256, "D": empty(HEADS), "dt_bias": empty(HEADS), "dt_softplus": True,
        "return_final_states": True,
    }  # fmt: skip
    if gate:
        made["z"] = z.unflatten(-1, (HEADS, HEADDIM))
        made["initial_states"] = empty(batch, HEADS, HEADDIM, D_STATE, dtype=torch.float32)
    if packed:
        made |= {"seq_idx": ints(batch, tokens), "cu_seqlens": ints(9)}
        made["return_varlen_states"] = True
    floats = {
        k: v for k, v in made.items() if isinstance(v, torch.Tensor) and v.is_floating_point()
    }
    return made | {k: v.detach().requires_grad_() for k, v in floats.items()}


def train(outs: Any) -> None:
    outs = outs if isinstance(outs, tuple) else (outs,)
    # a tensor of one token may have any stride, which makes it another layout
    torch.autograd.backward(outs, [out.new_empty_strided(out.shape, out.stride()) for out in outs])


def scan(tokens: int, batch: int = 1, gate: bool = False, packed: bool = False) -> None:
    train(tvkernels.mamba_chunk_scan_combined(**scan_arguments(tokens, batch, gate, packed)))


def conv(tokens: int, packed: bool) -> None:
    x = empty(1, tokens, COLUMNS)[..., 10240:22528].mT
    seq_idx = ints(1, tokens) if packed else None
    train(tvkernels.causal_conv1d_fn(x, empty(12288, 4), empty(12288), seq_idx, activation="silu"))


def gated_norm(tokens: int) -> None:
    z = empty(2, tokens, COLUMNS)[..., :10240]
    weight = empty(10240)
    train(tvkernels.rmsnorm_fn(empty(2, tokens, 10240), weight, None, z, group_size=1280))


def residual_norm(tokens: int) -> None:
    x, residual = empty(1, tokens, 4480), empty(1, tokens, 4480)
    train(tvkernels.rms_norm(x, empty(4480), 1e-5, residual))


def merge(tokens: int) -> None:
    """As many frames as give these tokens."""
    frames = max(1, tokens // 16)
    train(tvkernels.tome_merge(empty(frames, 729, 1152), 16).tokens)


def select(tokens: int, form: str) -> None:
    """A fifth of what does not stand in front."""
    q, hidden = empty(1, 40, 128, grad=False), empty(1, tokens, 4480, grad=False)
    options = {"keep": tokens // 5, "span": (tokens // 9, tokens - tokens // 9)}
    if form == "keys":
        tvkernels.attention_topk(q, empty(1, tokens, 8, 128, grad=False), **options)
        return
    turned = (empty(tokens, 128, grad=False),) * 2
    tail = empty(1, 64, 4480, grad=False) if form == "hidden and tail" else None
    tvkernels.attention_topk_hidden(
        q, hidden, empty(1024, 4480, grad=False), **options,
        norm_weight=empty(4480, grad=False), rope=turned if form == "turned" else None,
        tail=tail,
    )  # fmt: skip


def compact(tokens: int) -> None:
    dropped = torch.empty(1, tokens // 3, dtype=torch.int64, device="meta")
    got = tvkernels.compact(
        empty(1, tokens, 4480), dropped, ints(1, tokens), return_dropped=True
    )  # fmt: skip
    train((got.kept, got.dropped))


def transfer(tokens: int, question: int = 64, packed: bool = False) -> None:
    """Include few keys and many: only many are split, and the gradient of q has a form for each case."""
    for n, keys in {(question, tokens), (64, 17), (64, 300_000)}:
        q, text = empty(1, n, 40, 128), empty(1, n, 4480)
        k, v = (empty(1, keys, 8, 128) for _ in "kv")
        cu = {f"cu_seqlens_{name}": ints(9) if packed else None for name in "qk"}
        alpha, projection = empty(1, dtype=torch.float32), empty(4480, 5120)
        train(tvkernels.gated_cross_attention(text, q, k, v, alpha, out_proj=projection, **cu))


def attend(tokens: int, of: str) -> None:
    """The prefix, the tails, or the batch of a decode step grow; or a text of few or many tokens."""
    m, capacity, batch, n = (tokens if name == of else 4 for name in ("m", "tail", "batch", "n"))
    tail, shared = empty(batch, max(capacity, n), 8, 128), empty(1, m, 8, 128)
    q, lengths = empty(batch, n if of == "n" else 1, 40, 128), ints(batch)
    with torch.no_grad():
        tvkernels.prefix_attention(q, tail, tail, lengths, (shared, shared))


CALLS: dict[str, Call] = {
    "scan": scan,
    "scan, eight rows": partial(scan, batch=8),
    "scan with a gate and a first state": partial(scan, gate=True),
    "scan of packed sequences": partial(scan, packed=True),
    "convolution": partial(conv, packed=False),
    "convolution, packed": partial(conv, packed=True),
    "gated norm": gated_norm,
    "residual norm": residual_norm,
    "token merging": merge,
    "selection by keys": partial(select, form="keys"),
    "selection by hidden states": partial(select, form="hidden"),
    "selection by states in two parts": partial(select, form="hidden and tail"),
    "selection by turned states": partial(select, form="turned"),
    "rows taken out": compact,
    "transfer": transfer,
    "transfer, packed": partial(transfer, packed=True),
    "transfer into more text": lambda tokens: transfer(300_000, min(tokens, 2048)),
    **{f"attention as {of} grows": partial(attend, of=of) for of in ("m", "tail", "batch", "n")},
    "activation": lambda tokens: train(tvkernels.relu2(empty(1, tokens, 15680))),
    "activation of a slice": lambda n: train(tvkernels.relu2(empty(1, n, 31360)[..., :15680])),
}


def code_of(call: Call, tokens: int, target: str) -> set[str]:
    from benchmarks.machine_code import launches as aot
    from benchmarks.machine_code import targets

    with aot.recorded(targets.TARGETS[target], "a test") as launches:
        call(tokens)
    assert launches
    return {launch.key for launch in launches}


@pytest.mark.parametrize("call", CALLS)
def test_a_new_length_compiles_nothing(call: str) -> None:
    """The longest input launches the most kernels, so it compiles all that the others need."""
    known = code_of(CALLS[call], 300_000, "sm_90")
    for tokens in LENGTHS:
        assert code_of(CALLS[call], tokens, "sm_90") <= known, tokens


@pytest.mark.parametrize("call", CALLS)
def test_nor_does_it_on_amd_below_two_gigabytes(call: str) -> None:
    """From 2 GiB on Triton drops buffer descriptors on AMD and compiles one more variant."""
    known = code_of(CALLS[call], 5000, "gfx942")
    for tokens in (n for n in LENGTHS if n < 5000):
        assert code_of(CALLS[call], tokens, "gfx942") <= known, tokens


def test_a_specialised_length_would_be_seen() -> None:
    """The transposed input's stride is the length, and its divisibility by 16 is specialised."""

    def across(tokens: int) -> None:
        train(tvkernels.relu2(empty(64, tokens).mT))

    assert not code_of(across, 17, "sm_90") <= code_of(across, 4096, "sm_90")


class Allocated(TorchDispatchMode):
    """Bytes of every tensor that owns memory and is made inside the block, freed or not."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace == "aten":
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(t.nbytes for t in made if not any(t is arg for arg in args))
        return result


def kept_by(inputs: dict[str, Any]) -> tuple[int, tuple[torch.Tensor, ...]]:
    """Bytes that autograd keeps of a scan beside its inputs, and the results."""
    own = {x.untyped_storage()._cdata for x in inputs.values() if isinstance(x, torch.Tensor)}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        outs = tvkernels.mamba_chunk_scan_combined(**inputs)
    return sum(kept.values()), outs


def memory_of_training(tokens: int, gate: bool, packed: bool) -> tuple[int, int, int]:
    """Bytes that autograd keeps besides the inputs, and bytes that forward and backward allocate besides
    their results. Freed tensors count too, so the sums bound the peak from above."""
    from benchmarks.machine_code import launches as aot
    from benchmarks.machine_code import targets

    inputs = scan_arguments(tokens, 1, gate, packed)
    with Allocated() as forward, aot.recorded(targets.TARGETS["sm_90"], "a test"):
        kept, outs = kept_by(inputs)
    cotangents = [torch.empty_like(out) for out in outs]
    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    with Allocated() as backward, aot.recorded(targets.TARGETS["sm_90"], "a test"):
        grads = torch.autograd.grad(outs, leaves, cotangents)
    results = [sum(x.nbytes for x in made) for made in (outs, grads)]
    return kept, forward.bytes - results[0], backward.bytes - results[1]


@pytest.mark.parametrize(("gate", "packed"), [(False, False), (True, False), (False, True)])
def test_training_keeps_the_inputs_alone_and_its_workspace_is_bounded(
    gate: bool, packed: bool
) -> None:
    tokens = 160_000
    kept, forward, backward = memory_of_training(tokens, gate, packed)
    assert kept == 0
    assert forward < 1e3 * tokens
    # a gate adds no memory: the buffer of dz first holds the gradient that the gate multiplies
    assert 50e3 * tokens < backward < 60e3 * tokens


def test_the_reference_keeps_step_sizes_and_the_state_of_token_0() -> None:
    """Four float32 per token and head: a bound on every length but the shortest."""
    tokens = 2048
    with tvkernels.use_backend("reference"):
        kept, _ = kept_by(scan_arguments(tokens, 1, False, False))
    assert kept <= 4 * HEADS * (4 * tokens + 4 + HEADDIM * D_STATE)
