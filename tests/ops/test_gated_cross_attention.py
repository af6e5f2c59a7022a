"""gated_cross_attention against goldens of upstream, a naive float64 statement, and its laws."""

from __future__ import annotations

import json
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.contract import assert_close_by_rule, check_contract, compilers, device, on_device
from tests.footprint import largest_tensor
from tests.ops import common
from tests.ops.common import DATA
from tvkernels.gated_cross_attention import gated_cross_attention

law = settings(common.law, max_examples=15)
DTYPES = [*common.DTYPES, torch.float64]
# by name, because tvkernels.gated_cross_attention, the function, hides the folder of the same name
REFERENCE = import_module("tvkernels.gated_cross_attention.reference")
DIFFERENTIABLE = ("text", "q", "k", "v", "alpha")


def learnt(dtype: torch.dtype, *others: str) -> list[str]:
    """What the contract is asked of. Not of alpha in 16 bits: the error of one number is luck there,
    and test_the_gradient_of_the_gate_in_16_bits looks at many."""
    names = [*DIFFERENTIABLE, *others]
    return names if dtype.itemsize > 2 else [name for name in names if name != "alpha"]


def naive(
    text: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    alpha: torch.Tensor,
    out_proj: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Head by head, with the whole (n, m) map."""
    heads = []
    for h in range(q.shape[2]):
        g = h // (q.shape[2] // k.shape[2])
        weights = q[:, :, h] @ k[:, :, g].transpose(1, 2) * (scale or q.shape[3] ** -0.5)
        heads.append(weights.softmax(-1) @ v[:, :, g])
    update = torch.cat(heads, -1)
    if out_proj is not None:
        update = update @ out_proj.T
    return text + torch.tanh(alpha) * update


def make(
    batch: int = 2, n: int = 7, m: int = 45, nheads: int = 6, nkvheads: int = 2, headdim: int = 8,
    d_model: int = 20, alpha: float = 0.7, seed: int = 0,
) -> dict[str, torch.Tensor]:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    width = nheads * headdim
    inputs = {
        "text": torch.randn(batch, n, d_model, generator=g),
        "q": torch.randn(batch, n, nheads, headdim, generator=g),
        "k": torch.randn(batch, m, nkvheads, headdim, generator=g),
        "v": torch.randn(batch, m, nkvheads, headdim, generator=g),
        "alpha": torch.tensor(alpha),
        "out_proj": torch.randn(d_model, width, generator=g) / width**0.5,
    }
    return on_device(inputs)


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bytes, so that -0.0 differs from 0.0."""
    return x.flatten().contiguous().view(torch.uint8)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n": 1},
        {"nkvheads": 6},
        {"nkvheads": 1, "m": 600, "headdim": 16},
        {"alpha": -2.0},
    ],
    ids=str,
)
def test_contract(dtype: torch.dtype, shape: dict[str, Any]) -> None:
    wrt = learnt(dtype, "out_proj")
    check_contract(gated_cross_attention, naive, make(**shape), dtype=dtype, wrt=wrt)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_key_has_all_the_weight(dtype: torch.dtype) -> None:
    """Whatever q and k are: their gradients are 0, but for the rounding of sums of 8 products."""
    inputs = make(m=1)
    wrt = [name for name in learnt(dtype, "out_proj") if name not in ("q", "k")]
    check_contract(gated_cross_attention, naive, inputs, dtype=dtype, wrt=wrt)
    inputs = {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}
    out = gated_cross_attention(**inputs)
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for grad in torch.autograd.grad(out.sum(), (inputs["q"], inputs["k"])):
        assert float(grad.abs().max()) <= 100 * eps


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("alpha", "dtype"), [(0.0, torch.bfloat16), (0.7, torch.float16)])
def test_the_gradient_of_the_gate_in_16_bits(alpha: float, dtype: torch.dtype) -> None:
    def slopes(fn: Any, like: torch.dtype) -> torch.Tensor:
        found = []
        for seed in range(12):
            inputs = {k: x.to(dtype).to(like) for k, x in make(alpha=alpha, seed=seed).items()}
            leaf = inputs["alpha"].requires_grad_()
            cotangent = on_device(make(seed=50 + seed)["text"].to(dtype).to(like))
            found.append(torch.autograd.grad(fn(**inputs), leaf, cotangent)[0])
        return torch.stack(found)

    truth = slopes(naive, torch.float64)
    assert_close_by_rule(slopes(gated_cross_attention, dtype), slopes(naive, dtype), truth)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES)
def test_contract_without_projection(dtype: torch.dtype) -> None:
    inputs = {**make(d_model=48), "scale": 0.9}
    del inputs["out_proj"]
    check_contract(gated_cross_attention, naive, inputs, dtype=dtype, wrt=learnt(dtype))


@pytest.mark.usefixtures("backend")
def test_layouts() -> None:
    """No two tensors have a stride in common; alpha, one number, has none."""
    inputs: dict[str, Any] = make()
    inputs["k"] = torch.randn(2, 2, 45, 25)[..., :24:3].transpose(1, 2)
    inputs["v"] = torch.randn(2, 8, 1, 180)[..., ::4].permute(0, 3, 2, 1).expand(2, 45, 2, 8)
    inputs["text"] = torch.randn(2, 14, 60)[:, ::2, 10:50:2]
    inputs["q"] = torch.randn(8, 6, 2, 7).permute(2, 3, 1, 0)
    inputs["out_proj"] = torch.randn(48, 20).mT
    wrt = ("text", "q", "k", "v", "out_proj")
    check_contract(gated_cross_attention, naive, inputs, wrt=wrt)


def golden_cases() -> list[dict[str, Any]]:
    return json.loads((DATA / "transv.json").read_text())["cases"]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", golden_cases(), ids=lambda c: c["key"])
def test_goldens(case: dict[str, Any]) -> None:
    golden = on_device(load_file(DATA / "transv.safetensors"))
    key, stage = case["key"], int(case["key"][-1])
    hidden = golden[f"{key}.features_in"]
    text, dropped = hidden[:, case["vision_end"] :], hidden[:, golden[f"{key}.dropped_abs"].long()]

    def heads(x: torch.Tensor, name: str) -> torch.Tensor:
        return (x @ golden[f"merge_modules.{stage}.{name}_proj.weight"].T).unflatten(-1, (-1, 16))

    q, k, v = heads(text, "q"), heads(dropped, "k"), heads(dropped, "v")
    out_proj = golden[f"merge_modules.{stage}.o_proj.weight"]
    alpha = golden["alpha"][stage]
    assert alpha != 0
    out = gated_cross_attention(text, q, k, v, alpha, out_proj=out_proj)
    torch.testing.assert_close(out[0], golden[f"{key}.text_out"], atol=1e-5, rtol=0)
    # tanh(20) is 1 in float32, so that the update itself shows
    bare = gated_cross_attention(
        text * 0, q, k, v, torch.tensor(20.0, device=device()), out_proj=out_proj
    )
    torch.testing.assert_close(bare[0], golden[f"{key}.cross_attention"], atol=1e-5, rtol=0)


@law
@given(
    n=st.integers(0, 6), m=st.integers(0, 20), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_alpha_zero_returns_the_text_bitwise(
    backend: str, n: int, m: int, dtype: torch.dtype, seed: int
) -> None:
    inputs = {k: v.to(dtype) for k, v in make(n=n, m=m, alpha=0.0, seed=seed).items()}
    inputs["text"][:, :, ::3] = -0.0
    assert torch.equal(bits(gated_cross_attention(**inputs)), bits(inputs["text"]))


@pytest.mark.usefixtures("backend")
def test_alpha_zero_holds_even_where_the_update_is_not_finite() -> None:
    inputs = make(alpha=0.0)
    inputs["v"][0, 3] = float("inf")
    inputs["k"][1, 3] = float("nan")
    assert torch.equal(gated_cross_attention(**inputs), inputs["text"])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_zero_still_learns(dtype: torch.dtype) -> None:
    """The gate starts at 0, so its gradient there is the first step of training."""
    inputs = make(alpha=0.0)
    wrt = learnt(dtype, "out_proj")
    check_contract(gated_cross_attention, naive, inputs, dtype=dtype, wrt=wrt)
    inputs["alpha"].requires_grad_()
    gated_cross_attention(**inputs).sum().backward()
    assert inputs["alpha"].grad is not None
    assert abs(float(inputs["alpha"].grad)) > 1e-3


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_no_keys_return_the_text(alpha: float) -> None:
    inputs = make(m=0, alpha=alpha)
    inputs["text"][0, 0] = -0.0
    assert torch.equal(bits(gated_cross_attention(**inputs)), bits(inputs["text"]))


@pytest.mark.usefixtures("backend")
def test_alpha_may_be_a_vector_of_one() -> None:
    inputs = make()
    whole = gated_cross_attention(**inputs)
    assert torch.equal(gated_cross_attention(**{**inputs, "alpha": inputs["alpha"][None]}), whole)


@law
@given(
    text_lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    key_lengths=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    as_ints=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_packed_is_each_alone(
    backend: str, text_lengths: list[int], key_lengths: list[int], as_ints: bool, seed: int
) -> None:
    key_lengths = key_lengths[: len(text_lengths)]
    inputs = make(batch=1, n=sum(text_lengths), m=sum(key_lengths), seed=seed)
    cu_q = [sum(text_lengths[:i]) for i in range(len(text_lengths) + 1)]
    cu_k = [sum(key_lengths[:i]) for i in range(len(key_lengths) + 1)]
    offsets = (cu_q, cu_k) if as_ints else (torch.tensor(cu_q).int(), torch.tensor(cu_k).int())
    packed = gated_cross_attention(**inputs, cu_seqlens_q=offsets[0], cu_seqlens_k=offsets[1])
    alone = []
    for (a, b), (c, d) in zip(pairwise(cu_q), pairwise(cu_k)):
        rows = {name: inputs[name][:, a:b] for name in ("text", "q")}
        keys = {name: inputs[name][:, c:d] for name in ("k", "v")}
        alone.append(gated_cross_attention(**{**inputs, **rows, **keys}))
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("backend")
def test_a_packed_sequence_without_keys_keeps_its_text_bitwise() -> None:
    inputs = make(batch=1, n=5, m=9)
    inputs["text"][0, 2:] = -0.0
    out = gated_cross_attention(**inputs, cu_seqlens_q=[0, 2, 5], cu_seqlens_k=[0, 9, 9])
    assert torch.equal(bits(out[:, 2:]), bits(inputs["text"][:, 2:]))
    assert not torch.equal(out[:, :2], inputs["text"][:, :2])


@pytest.mark.usefixtures("backend")
def test_packed_gradients() -> None:
    inputs = make(batch=1, n=9, m=30)
    cu_q, cu_k = [0, 4, 9], [0, 11, 30]

    def packed_naive(text, q, k, v, alpha, out_proj):
        parts = [(0, 4, 0, 11), (4, 9, 11, 30)]
        return torch.cat(
            [naive(text[:, a:b], q[:, a:b], k[:, c:d], v[:, c:d], alpha, out_proj)
             for a, b, c, d in parts], 1,
        )  # fmt: skip

    def packed(**kwargs):
        return gated_cross_attention(**kwargs, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)

    check_contract(packed, packed_naive, inputs, wrt=(*DIFFERENTIABLE, "out_proj"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_linear_in_keys_and_text(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REFERENCE, "MAP_BLOCK", 2048)

    def elements(n: int, m: int) -> int:
        inputs = {k: v.to(dtype).requires_grad_() for k, v in make(batch=1, n=n, m=m).items()}
        return largest_tensor(lambda: gated_cross_attention(**inputs).sum().backward())

    # the whole map would have 6 * n * m entries; a block has at most 16 rows of it per key head
    assert elements(64, 4096) <= 16 * 2 * 4096
    assert elements(1024, 1024) <= 6 * 8 * 1024


def test_the_backward_keeps_no_map() -> None:
    inputs = {k: v.requires_grad_() for k, v in make(batch=1, n=64, m=512).items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, id):
        gated_cross_attention(**inputs)
    assert sum(kept) < 6 * 64 * 512


def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    wrt = (*DIFFERENTIABLE, "out_proj")
    monkeypatch.setattr(REFERENCE, "MAP_BLOCK", 900)
    check_contract(gated_cross_attention, naive, make(n=20), wrt=wrt)


@pytest.mark.usefixtures("backend")
def test_compiles_whole() -> None:
    inputs = {k: v.requires_grad_() for k, v in make().items()}
    want = gated_cross_attention(**inputs)
    want = (want, *torch.autograd.grad(want.sum(), list(inputs.values())))
    for compiler in compilers():
        torch._dynamo.reset()
        mine = torch.compile(gated_cross_attention, fullgraph=True, backend=compiler)(**inputs)
        mine = (mine, *torch.autograd.grad(mine.sum(), list(inputs.values())))
        for a, b in zip(mine, want):
            torch.testing.assert_close(a, b)


def test_meta_tensors_carry_shapes() -> None:
    inputs = {k: v.to("meta", torch.bfloat16) for k, v in make().items()}
    out = gated_cross_attention(**inputs)
    assert (out.shape, out.dtype) == ((2, 7, 20), torch.bfloat16)


GOOD = make(batch=1, n=4, m=6)
PACKED = {**GOOD, "cu_seqlens_q": [0, 1, 4], "cu_seqlens_k": [0, 3, 6]}


@pytest.mark.parametrize(
    ("base", "change", "sentence"),
    [
        (
            GOOD,
            {"text": torch.ones(4, 20)},
            r"gated_cross_attention: text must be \(batch, n, d_model\), got shape \(4, 20\)",
        ),
        (
            GOOD,
            {"text": torch.ones(1, 4, 20).int()},
            "text must be of dtype float32, .*, got int32",
        ),
        (
            GOOD,
            {"q": torch.ones(1, 5, 6, 8)},
            r"q must be \(batch, n, nheads, headdim\) = \(1, 4, any, any\), got shape",
        ),
        (
            GOOD,
            {"k": torch.ones(1, 6, 2, 4)},
            r"k must be \(batch, m, nkvheads, headdim\) = \(1, any, any, 8\), got shape",
        ),
        (
            GOOD,
            {"v": torch.ones(1, 5, 2, 8)},
            r"v must be \(batch, m, nkvheads, headdim\) = \(1, 6, 2, 8\), got shape",
        ),
        (
            GOOD,
            {"k": torch.ones(1, 6, 4, 8), "v": torch.ones(1, 6, 4, 8)},
            r"k must have key heads that divide nheads 6 \(.*\), got 4",
        ),
        (
            GOOD,
            {"v": torch.ones(1, 6, 2, 8).half()},
            r"v must have the dtype of text \(torch.float32\), got torch.float16",
        ),
        (
            GOOD,
            {"alpha": torch.zeros(2)},
            r"alpha must have one element \(one gate per call\), got shape \(2,\)",
        ),
        (GOOD, {"alpha": 0.3}, "alpha must be a tensor, got a float"),
        (
            GOOD,
            {"out_proj": torch.ones(20, 48).long()},
            "out_proj must be of dtype float32, .*, got int64",
        ),
        (GOOD, {"alpha": torch.tensor(0)}, "alpha must be of dtype float32, .*, got int64"),
        (
            GOOD,
            {"out_proj": torch.ones(48, 20)},
            r"out_proj must be \(d_model, nheads \* headdim\) = \(20, 48\), got shape \(48, 20\)",
        ),
        (
            GOOD,
            {"out_proj": None},
            r"out_proj must be given unless nheads \* headdim \(48\) is d_model \(20\), got None",
        ),
        (GOOD, {"k": GOOD["k"].to("meta")}, r"k must lie on the device of text \(cpu\), got meta"),
        (
            GOOD,
            {"cu_seqlens_q": [0, 4]},
            "cu_seqlens_q and cu_seqlens_k must be given together, got cu_seqlens_q alone",
        ),
        (
            GOOD,
            {"cu_seqlens_k": [0, 6]},
            "cu_seqlens_q and cu_seqlens_k must be given together, got cu_seqlens_k alone",
        ),
        (
            {**make(n=4, m=6), "cu_seqlens_q": [0, 4], "cu_seqlens_k": [0, 6]},
            {},
            r"text must have batch 1 \(cu_seqlens packs sequences\), got shape",
        ),
        (
            PACKED,
            {"cu_seqlens_k": [0, 6]},
            "must have the same number of entries, n_seqs \\+ 1 .*, got 3 and 2",
        ),
        (
            PACKED,
            {"cu_seqlens_q": [0, 4, 1]},
            r"cu_seqlens_q must rise from 0 to 4 \(the packed length\), got \[0, 4, 1\]",
        ),
        (
            PACKED,
            {"cu_seqlens_k": [0, 3.0, 6]},
            r"cu_seqlens_k must be a tensor or a sequence of ints, got \[0, 3.0, 6\]",
        ),
        (
            PACKED,
            {"cu_seqlens_k": torch.tensor([0, 3, 5])},
            r"cu_seqlens_k must rise from 0 to 6 \(the packed length\), got \[0, 3, 5\]",
        ),
        (
            PACKED,
            {"cu_seqlens_k": torch.tensor([0, 3, 6.0])},
            "cu_seqlens_k must be of dtype int32, int64, got float32",
        ),
    ],
)
def test_errors(base: dict[str, Any], change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        gated_cross_attention(**{**base, **change})
