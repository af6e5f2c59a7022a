"""gated_cross_attention against a naive float64 form and recorded stages of TransV."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.contract import check_contract, compilers, device, on_device
from tests.footprint import largest_tensor
from tests.ops.common import DATA
from tests.ops.gated_cross_attention.common import DTYPES, REFERENCE, learnt, make, naive
from tvkernels.gated_cross_attention import gated_cross_attention


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


@pytest.mark.usefixtures("backend")
def test_alpha_may_be_a_vector_of_one() -> None:
    inputs = make()
    whole = gated_cross_attention(**inputs)
    assert torch.equal(gated_cross_attention(**{**inputs, "alpha": inputs["alpha"][None]}), whole)


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
