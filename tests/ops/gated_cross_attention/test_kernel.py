"""The kernels of gated_cross_attention: tiles, splits, packing, offsets, operators."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    assert_close_by_rule,
    check_capture,
    check_contract,
    compilers,
    device,
    errors,
    every_config,
    on_device,
)
from tests.footprint import largest_tensor
from tests.interpreter import fenced_empty, lazily, poisoned_empty
from tests.ops.gated_cross_attention.common import DIFFERENTIABLE, bits, learnt, make, naive
from tvkernels import use_backend
from tvkernels.gated_cross_attention import gated_cross_attention

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU"),
]
OP = import_module("tvkernels.gated_cross_attention.op")
ALL = (*DIFFERENTIABLE, "out_proj")
# two splits of the keys, of several steps each; several tiles of rows, of keys, of the projection
# in height, width and depth
LARGE = {"n": 60, "m": 1300, "headdim": 24, "d_model": 140}


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    with use_backend("triton"), poisoned_empty():
        yield


def engine() -> Any:
    return import_module("tvkernels.gated_cross_attention.kernel")


def cotangent_of(text: torch.Tensor) -> torch.Tensor:
    batch, n, d_model = text.shape
    return make(seed=9, n=n, batch=batch, d_model=d_model)["text"].to(text)


def with_gradients(
    inputs: dict[str, Any], wrt: tuple[str, ...] = ALL, dout: Any = None, **options: Any
) -> list[Any]:
    leaves = {k: x.detach().requires_grad_() if k in wrt else x for k, x in inputs.items()}
    out = gated_cross_attention(**leaves, **options)
    dout = cotangent_of(out) if dout is None else dout
    return [out, *torch.autograd.grad(out, [leaves[k] for k in wrt], dout)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_tiles_and_splits(dtype: torch.dtype) -> None:
    inputs = make(**LARGE)
    assert engine()._splits(inputs["q"], inputs["k"], None) == 2
    wrt = learnt(dtype, "out_proj")
    check_contract(gated_cross_attention, naive, inputs, dtype=dtype, wrt=wrt)


@pytest.mark.parametrize("headdim", [1, 80, 256])
def test_every_headdim(headdim: int) -> None:
    inputs = make(batch=1, n=9, m=37, nheads=2, nkvheads=1, headdim=headdim)
    check_contract(gated_cross_attention, naive, inputs, wrt=ALL)


@pytest.mark.parametrize("far", [-30.0, 30.0])
def test_logits_far_from_zero(far: float) -> None:
    """Logits of about 200, whose exp2 overflows float32, and which are far from 0, the logit of a
    masked key. alpha is left out: rounding of the logits shows most in its gradient of one number."""
    inputs = make(batch=1)
    inputs["q"], inputs["k"] = inputs["q"].abs() + 1, inputs["k"] + far
    wrt = [name for name in ALL if name != "alpha"]
    check_contract(gated_cross_attention, naive, inputs, wrt=wrt)


KERNELS = [
    "split_kernel:split_kernel",
    "gate_kernel:project_kernel",
    "backward_kernel:query_backward_kernel",
    "backward_kernel:key_backward_kernel",
]


@pytest.mark.parametrize(
    "config", every_config(*(f"tvkernels.gated_cross_attention.{k}" for k in KERNELS)), ids=str
)
def test_every_configuration(config: Any) -> None:
    from tvkernels.core.tune import forced

    inputs = make(batch=1, n=45, m=150, headdim=64)
    with forced(config):
        check_contract(gated_cross_attention, naive, inputs, wrt=ALL)


# one sequence without keys, one without text, one without both, one longer than a tile; empty ends
CU_Q = [0, 0, 50, 51, 51, 51, 120, 124]
CU_K = [0, 7, 307, 307, 520, 520, 523, 900]


def packed_naive(**inputs: torch.Tensor) -> torch.Tensor:
    outs = []
    for (a, b), (c, d) in zip(pairwise(CU_Q), pairwise(CU_K)):
        rows = {name: inputs[name][:, a:b] for name in ("text", "q")}
        keys = {name: inputs[name][:, c:d] for name in ("k", "v")}
        outs.append(naive(**{**inputs, **rows, **keys}))
    return torch.cat(outs, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [512, 60], ids=["whole", "split"])
def test_packed_sequences_of_any_length(
    keys: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make(batch=1, n=CU_Q[-1], m=CU_K[-1])
    monkeypatch.setattr(engine(), "KEYS", keys)
    offsets = on_device((torch.tensor(CU_Q).int(), torch.tensor(CU_K)))
    assert engine()._splits(inputs["q"], inputs["k"], offsets[0]) == (1 if keys == 512 else 2)

    def packed(**inputs: torch.Tensor) -> torch.Tensor:
        return gated_cross_attention(**inputs, cu_seqlens_q=offsets[0], cu_seqlens_k=offsets[1])

    wrt = learnt(dtype, "out_proj")
    check_contract(packed, packed_naive, inputs, dtype=dtype, wrt=wrt)


@pytest.mark.parametrize("form", ["projected", "bare", "packed"])
def test_nothing_beside_a_tensor_is_read_or_written(form: str) -> None:
    """Inputs, results and intermediate tensors are fenced; strides are odd and tiles are not full."""
    sizes = {"d_model": 72, "batch": 1} if form == "bare" else {}
    inputs: dict[str, Any] = make(n=50, m=150, headdim=12, **sizes)
    options: dict[str, Any] = {}
    truth = naive
    if form == "packed":
        inputs, truth = make(batch=1, n=CU_Q[-1], m=CU_K[-1], headdim=12), packed_naive
        options = {"cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K}
    options = on_device({name: torch.tensor(ends) for name, ends in options.items()})
    for name in ("text", "q", "k", "v"):
        inputs[name] = torch.cat([inputs[name]] * 2, 1)[:, : inputs[name].shape[1]]
    wrt = DIFFERENTIABLE if form == "bare" else ALL
    if form == "bare":
        del inputs["out_proj"]
    with fenced_empty():
        options = {name: torch.empty_like(ends).copy_(ends) for name, ends in options.items()}
        check_contract(
            lambda **given: gated_cross_attention(**given, **options), truth, inputs, wrt=wrt
        )


@pytest.mark.parametrize("bare", [False, True])
def test_gradients_of_any_strides(bare: bool) -> None:
    """The gradient of a sum is one number expanded to all strides 0; the other one is a transpose."""
    inputs = make(batch=1, d_model=48)
    if bare:
        del inputs["out_proj"]
    turned = torch.randn(48, 7, 1).to(inputs["text"]).permute(2, 1, 0)
    for dout in (turned[:, :1, :1].expand(turned.shape), turned):
        got = with_gradients(inputs, tuple(inputs), dout=dout)
        for mine, want in zip(got, with_gradients(inputs, tuple(inputs), dout=dout.contiguous())):
            assert_alike(mine, want, rounding=COMPILED)


def test_keys_of_minus_infinity_get_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step, and a split, may hold nothing else, and then its maximum is minus infinity."""
    inputs = make(batch=1, m=600)
    inputs["q"] = inputs["q"].abs() + 0.1
    want = with_gradients({**inputs, **{k: inputs[k][:, 450:] for k in "kv"}}, ("v",))
    inputs["k"][:, :450] = float("-inf")
    for splits in (1, 3):
        monkeypatch.setattr(engine(), "KEYS", 600 // splits)
        out, dv = with_gradients(inputs, ("v",))
        torch.testing.assert_close(out, want[0])
        torch.testing.assert_close(dv[:, 450:], want[1])


def test_offsets_on_a_device_that_lead_too_far_are_cut() -> None:
    """The host cannot check offsets on a device, so the kernels clamp them to the tokens."""
    inputs = make(batch=1, n=50, m=150)

    def run(*ends: list[int]) -> list[torch.Tensor]:
        offsets = on_device([torch.tensor(x) for x in ends])
        with fenced_empty():
            tensors = [torch.empty_like(inputs[k]).copy_(inputs[k]) for k in ALL]
            out, *saved = OP._transfer_fwd(*tensors, *offsets, 0.3)
            rest = (*tensors[5:], *saved, *offsets, 0.3)
            return [out, *OP._transfer_bwd(cotangent_of(out), *tensors[1:5], *rest)]

    for got, want in zip(run([0, 7, 70], [0, 20, 400]), run([0, 7, 50], [0, 20, 150])):
        assert torch.equal(got, want)


def test_what_is_not_finite_stays_in_its_sequence() -> None:
    clean = make(batch=1, n=9, m=60)
    spoilt = {k: x.clone() for k, x in clean.items()}
    spoilt["v"][0, 20:40] = float("nan")
    spoilt["k"][0, 25] = float("inf")
    options = {"cu_seqlens_q": [0, 3, 6, 9], "cu_seqlens_k": [0, 20, 40, 60]}
    tokens, keys = [0, 1, 2, 6, 7, 8], [*range(20), *range(40, 60)]
    ours, theirs = (with_gradients(x, ("q", "k", "v"), **options) for x in (spoilt, clean))
    for got, want, at in zip(ours, theirs, (tokens, tokens, keys, keys)):
        assert torch.equal(got[:, at], want[:, at])
    assert bool(ours[0][:, 3:6].isnan().any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_bitwise_equal(dtype: torch.dtype) -> None:
    inputs = {k: x.to(dtype) for k, x in make(**LARGE, batch=1).items()}
    for a, b in zip(with_gradients(inputs), with_gradients(inputs)):
        assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize(
    ("text", "keys", "splits"),
    [(64, 80_000, 11), (64, 160_000, 11), (7, 80_000, 33), (64, 4_000, 7), (512, 160_000, 1)],
)
def test_splits_depend_on_the_shapes_alone(text: int, keys: int, splits: int) -> None:
    q = torch.empty(1, text, 40, 128, device="meta")
    k = torch.empty(1, keys, 8, 128, device="meta")
    assert engine()._splits(q, k, None) == splits


@pytest.mark.parametrize(("programs", "keys"), [(1, 1), (40, 1), (1000, 100)])
def test_splits_do_not_matter(programs: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One split, 20 splits most of which have no keys, and 3 splits."""
    inputs = make(batch=1, n=5, m=300, nheads=2)
    monkeypatch.setattr(engine(), "PROGRAMS", programs)
    monkeypatch.setattr(engine(), "KEYS", keys)
    check_contract(gated_cross_attention, naive, inputs, wrt=ALL)


@pytest.mark.parametrize(
    ("text", "others"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float16),
    ],
    ids=str,
)
def test_gate_and_projection_have_dtypes_of_their_own(
    text: torch.dtype, others: torch.dtype
) -> None:
    inputs = make()
    dtypes = {k: others if k in ("alpha", "out_proj") else text for k in inputs}
    inputs = {k: x.to(dtypes[k]) for k, x in inputs.items()}
    got = with_gradients(inputs)
    assert [x.dtype for x in got] == [text, *(dtypes[k] for k in ALL)]
    with use_backend("reference"):
        exact = with_gradients({k: x.double() for k, x in inputs.items()})
        plain = with_gradients({k: x.to(text) for k, x in inputs.items()})
        rounded = with_gradients(inputs)
    for name, ours, theirs, wider, truth in zip(("out", *ALL), got, rounded, plain, exact):
        worse = max((theirs, wider), key=lambda x: errors(x, truth))
        if name != "alpha" or text == torch.float32:
            assert_close_by_rule(ours.to(text), worse.to(text), truth, name)


def test_the_gate_is_tanh_of_small_and_of_large() -> None:
    sizes = [0.0, 1e-30, 1e-8, 3e-7, 1e-4, 7e-3, 0.1, 0.9, 5.0, 19.0, 21.0, 300.0, float("inf")]
    one = make(batch=1, n=1, m=1, nheads=1, nkvheads=1, headdim=1, d_model=1)
    one["text"], one["v"] = torch.zeros_like(one["text"]), torch.ones_like(one["v"])
    del one["out_proj"]
    for dtype in (torch.float32, torch.float64):
        inputs = {k: x.to(dtype) for k, x in one.items()}
        for alpha in [*sizes, *(-x for x in sizes)]:
            inputs["alpha"] = torch.tensor(alpha, dtype=dtype, device=device())
            got, want = gated_cross_attention(**inputs).flatten()[0], inputs["alpha"].tanh()
            torch.testing.assert_close(got, want, rtol=4 * torch.finfo(dtype).eps, atol=0)
        inputs["alpha"] = torch.tensor(float("nan"), dtype=dtype, device=device())
        assert bool(gated_cross_attention(**inputs).isnan().all())


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        *((name, axis) for name in ("text", "cotangent") for axis in (1, 2)),
        *((name, axis) for name in ("q", "k", "v") for axis in (1, 2)),
        *(("q", 3), ("k", 0), ("out_proj", 0), ("out_proj", 1)),
    ],
)
def test_offsets_past_32_bits(name: str, axis: int) -> None:
    """The stride itself fits 32 bits, so that only the product with the index does not."""
    inputs = make(batch=3, n=3, m=3, d_model=3, nheads=6, nkvheads=3)
    inputs = {k: x.bfloat16() for k, x in inputs.items()}
    inputs["cotangent"] = make(n=3, batch=3, d_model=3, seed=9)["text"].bfloat16()
    if axis:
        # the stride of a batch would be another far one
        one = {k for k in inputs if k not in ("alpha", "out_proj")}
        inputs = {k: x[:1] if k in one else x for k, x in inputs.items()}

    def run(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        leaves = {k: x.detach().requires_grad_() for k, x in given.items() if k != "cotangent"}
        out = gated_cross_attention(**leaves)
        return [out, *torch.autograd.grad(out, list(leaves.values()), given["cotangent"])]

    near = inputs[name]
    strides = list(near.stride())
    strides[axis] = 3 * 2**30 // (near.shape[axis] - 1)
    distant = lazily(tuple(near.shape), tuple(strides), torch.bfloat16, device()).copy_(near)
    for got, want in zip(run({**inputs, name: distant}), run(inputs)):
        assert_alike(got, want, rounding=COMPILED)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_operators_are_sound(bare: bool, packed: bool) -> None:
    inputs = make(batch=1, n=5, m=9, d_model=48)
    projection = None if bare else inputs["out_proj"]
    offsets = on_device((torch.tensor([0, 2, 5]), torch.tensor([0, 9, 9])))
    offsets = offsets if packed else (None, None)
    tensors = [inputs[k] for k in DIFFERENTIABLE]
    torch.library.opcheck(OP._transfer_fwd.op, (*tensors, projection, *offsets, 0.3))
    _, attended, norm = OP._transfer_fwd(*tensors, projection, *offsets, 0.3)
    saved = (projection, attended, norm, *offsets)
    torch.library.opcheck(OP._transfer_bwd.op, (inputs["text"], *tensors[1:], *saved, 0.3))


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_packed_compiles_whole(kind: Any) -> None:
    inputs = {k: x.requires_grad_() for k, x in make(batch=1, n=5, m=9).items()}
    offsets = on_device({"cu_seqlens_q": kind([0, 2, 5]), "cu_seqlens_k": kind([0, 9, 9])})

    def run(fn: Any) -> list[torch.Tensor]:
        out = fn(**inputs, **offsets)
        return [out, *torch.autograd.grad(out.sum(), list(inputs.values()))]

    expected = run(gated_cross_attention)
    for compiler in compilers():
        torch._dynamo.reset()
        compiled = torch.compile(gated_cross_attention, fullgraph=True, backend=compiler)
        for got, want in zip(run(compiled), expected):
            assert_alike(got, want, rounding=compiler == "inductor")


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"n": 0}, {"d_model": 0}, {"nheads": 0}], ids=str)
def test_nothing_to_do(sizes: dict[str, int]) -> None:
    inputs = make(**sizes)
    out, *grads = with_gradients(inputs)
    assert torch.equal(bits(out), bits(inputs["text"]))
    for name, grad in zip(ALL, grads):
        assert grad.shape == inputs[name].shape
        assert name == "text" or not bool(grad.any())


def test_a_head_that_no_registers_hold() -> None:
    inputs = make(batch=1, headdim=272)
    sentence = "gated_cross_attention: Triton has headdim up to 256, got 272; use_backend"
    with pytest.raises(NotImplementedError, match=sentence):
        gated_cross_attention(**inputs)


def calls(offsets: tuple[torch.Tensor | None, ...], inputs: dict[str, torch.Tensor]) -> Any:
    """Forward and backward of the launchers, below the operator, where a dispatch mode sees tensors."""

    def run() -> None:
        tensors = [inputs[k] for k in ALL]
        dtype = inputs["text"].dtype
        out, attended, norm = engine().transfer_forward(*tensors, *offsets, 0.3, dtype)
        engine().transfer_backward(out, *tensors[1:], attended, norm, *offsets, 0.3)

    return run


def test_memory_is_linear_in_keys_and_text() -> None:
    n, m = 64, 4096
    inputs = make(batch=1, n=n, m=m)
    splits = engine()._splits(inputs["q"], inputs["k"], None)
    assert splits == 8
    largest = largest_tensor(calls((None, None), inputs))
    # times 4: the interpreter copies storages as bytes, so it allocates 4 elements for each float32
    assert largest <= 4 * max(inputs["k"].numel(), splits * inputs["q"].numel()) < 6 * n * m


class Waits(TorchDispatchMode):
    """Refuses operations that read values back to the host, or whose shape depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._overloadpacket not in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.masked_select,
            torch.ops.aten.repeat_interleave,
            torch.ops.aten.index,
        ), func
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    inputs = make(batch=1, n=5, m=9)
    offsets = on_device((torch.tensor([0, 2, 5]), torch.tensor([0, 4, 9])))
    with Waits():
        calls(offsets, inputs)()
    with pytest.raises(AssertionError), Waits():
        int(offsets[0][1])


@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    inputs = {k: x.bfloat16() for k, x in make(batch=1, n=CU_Q[-1], m=CU_K[-1]).items()}
    offsets = on_device({"cu_seqlens_q": torch.tensor(CU_Q), "cu_seqlens_k": torch.tensor(CU_K)})
    dout = cotangent_of(inputs["text"])
    check_capture(lambda: tuple(with_gradients(inputs, dout=dout)))
    check_capture(lambda: tuple(with_gradients(inputs, dout=dout, **offsets)))
