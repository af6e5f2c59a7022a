"""The kernels of token selection: configurations, strides, offsets, operators."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    check_capture,
    compilers,
    device,
    every_config,
)
from tests.interpreter import fenced_empty, lazily, poisoned_empty
from tests.ops.attention_topk.common import (
    assert_same,
    naive_hidden,
    naive_topk,
    pick,
    randn,
    rope_angles,
    rope_tables,
    rotated,
)
from tvkernels import use_backend
from tvkernels.attention_topk import TopKResult, attention_topk, attention_topk_hidden

ROOM = "tvkernels.attention_topk"
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU"),
]


@pytest.fixture(autouse=True)
def _on_triton() -> Any:
    with use_backend("triton"), poisoned_empty():
        yield


def kernel(name: str) -> Any:
    """By name, because the function hides the folder of the same name."""
    return import_module(f"{ROOM}.{name}")


def keys_call(dtype: torch.dtype = torch.float32, tokens: int = 300) -> dict[str, Any]:
    """Several tiles of tokens, two key heads of ten query rows."""
    q, k = randn(2, 2, 10, 20), randn(2, tokens, 2, 20)
    return {"q": q.to(dtype), "k": k.to(dtype), "keep": 41, "span": (7, tokens - 20)}


def hidden_call(dtype: torch.dtype = torch.float32, heads: int = 10) -> dict[str, Any]:
    """More channels than one step of the loop loads."""
    q, hidden, weight = randn(1, heads, 20), randn(1, 150, 150), randn(40, 150) / 12
    given = {"q": q, "hidden": hidden, "k_weight": weight}
    return {**{n: x.to(dtype) for n, x in given.items()}, "keep": 30, "span": (3, 140)}


def by_keys(**given: Any) -> tuple[TopKResult, Any]:
    return attention_topk(**given), naive_topk(**wide(given))


def by_hidden(turned: bool = False, **given: Any) -> tuple[TopKResult, Any]:
    angles = rope_angles(given["hidden"].shape[1], 20)
    norm, bias = randn(given["hidden"].shape[2]), 2 * randn(40, seed=1)
    got = attention_topk_hidden(
        **given,
        norm_weight=(norm, 0.1),
        k_bias=bias if turned else None,
        rope=rope_tables(angles) if turned else None,
    )
    want = naive_hidden(
        **wide(given),
        norm=norm.double(),
        eps=0.1,
        bias=bias.double() if turned else None,
        angles=angles if turned else None,
    )
    return got, want


def wide(given: dict[str, Any]) -> dict[str, Any]:
    return {n: x.double() if isinstance(x, torch.Tensor) else x for n, x in given.items()}


@pytest.mark.parametrize("config", every_config(f"{ROOM}.scores_kernel:logits_kernel"), ids=str)
def test_every_config(config: Any) -> None:
    from tvkernels.core.tune import forced

    with forced(config):
        assert_same(*by_keys(**keys_call()))
        # with 16-bit hidden states a query row has two terms: its value and its rounding error
        assert_same(*by_hidden(**hidden_call(torch.bfloat16)))


@pytest.mark.parametrize(
    "config", every_config(f"{ROOM}.scores_kernel:rotated_logits_kernel"), ids=str
)
def test_every_config_of_turned_keys(config: Any) -> None:
    from tvkernels.core.tune import forced

    with forced(config):
        assert_same(*by_hidden(turned=True, **hidden_call(torch.bfloat16)))


def test_more_query_rows_than_a_program_holds() -> None:
    q, k = randn(1, 7, 10, 16), randn(1, 140, 1, 16)
    assert q.shape[1] * q.shape[2] > kernel("scores_kernel").MOST_ROWS
    assert_same(*by_keys(q=q, k=k, keep=9, span=(0, 140)))
    assert_same(*by_hidden(**hidden_call(heads=66)))


@pytest.mark.parametrize("turned", [False, True])
def test_a_projection_wider_than_the_hidden_states(turned: bool) -> None:
    """A weight of float32 is not rounded to the dtype of the hidden states; the error would show."""
    given = hidden_call(torch.bfloat16)
    given["k_weight"] = hidden_call()["k_weight"]
    assert_same(*by_hidden(turned, **given))


@pytest.mark.parametrize("form", ["keys", "hidden", "turned"])
def test_strides(form: str) -> None:
    """Slices and transposes of wider tensors, and one sequence for a whole batch."""
    if form == "keys":
        given = keys_call()
        given["k"] = torch.cat([given["k"]] * 2, -1)[:1, :, :, 3:23].expand(2, -1, -1, -1)
        given["q"] = given["q"].transpose(1, 3).contiguous().transpose(1, 3)
        assert_same(*by_keys(**given))
        return
    given = hidden_call()
    given["hidden"] = given["hidden"].mT.contiguous().mT
    given["k_weight"] = given["k_weight"].T.contiguous().T
    assert_same(*by_hidden(form == "turned", **given))


def apart(x: torch.Tensor, step: int) -> torch.Tensor:
    """The same values, `step` times as far from each other."""
    strides = tuple(step * stride for stride in x.stride())
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["keys", "hidden", "turned"])
def test_nothing_beside_a_tensor_is_read_or_written(form: str, dtype: torch.dtype) -> None:
    """Memory between the elements of a tensor counts as outside too. Every tensor has its own strides,
    and half a head is shorter than the tile that loads it."""
    q, k, hidden = randn(2, 10, 12), randn(2, 150, 2, 12), randn(2, 150, 70)
    weight, norm, angles = randn(24, 70) / 8, randn(70), rope_angles(150, 12)
    bias = randn(24).to(dtype)
    q, k, hidden, weight, norm = (x.to(dtype) for x in (q, k, hidden, weight, norm))
    cos, sin = rope_tables(angles)
    exact = [x.double() for x in (q, hidden, weight)]
    rest = (30, (3, 140))
    with fenced_empty():
        if form == "keys":
            want = naive_topk(q.double(), k.double(), *rest)
            got = attention_topk(apart(q, 2), apart(k, 3), *rest)
        else:
            turns = form == "turned"
            turned = {"angles": angles if turns else None, "bias": bias.double()}
            want = naive_hidden(*exact, *rest, norm.double(), 0.1, **turned)
            got = attention_topk_hidden(
                apart(q, 2), apart(hidden, 3), apart(weight, 5), *rest,
                norm_weight=(apart(norm, 7), 0.1), k_bias=apart(bias, 4),
                rope=(apart(cos, 2), apart(sin, 3)) if turns else None,
            )  # fmt: skip
    assert_same(got, want)


@pytest.mark.parametrize(
    ("dtype", "levels", "keep"),
    [
        (torch.float32, 1, 60), (torch.float32, 8, 0), (torch.float32, 8, 149),
        (torch.float64, 8, 70), (torch.float32, 8, 85),
    ],
)  # fmt: skip
def test_the_threshold_among_many_parts(
    dtype: torch.dtype, levels: int, keep: int, monkeypatch: Any
) -> None:
    """Scores hold zeros, denormals, NaN and ties across parts and steps. With keep = 85 some scores,
    also in earlier parts, differ from the threshold in their last digit only."""
    select = kernel("select_kernel")
    monkeypatch.setattr(select, "BLOCK", 4)
    monkeypatch.setattr(select, "MOST_PARTS", 19)
    tiny = torch.finfo(dtype).smallest_normal / 8
    values = [0.0, tiny, 2 * tiny, 1e-3, 1e-3 * (1 + 2**-20), 0.5, 1.0, float("nan")]
    which = torch.randint(0, levels, (2, 150), generator=torch.Generator().manual_seed(1))
    scores = torch.tensor(values, dtype=dtype)[which].to(device())
    with fenced_empty():
        kept, dropped = select.topk_in_order(apart(scores, 1), keep)
    for row in range(2):
        # the index into `values` orders the scores
        best, rest = pick(which[row].tolist(), keep)
        assert kept[row].tolist() == best
        assert dropped[row].tolist() == rest


def test_scores_that_differ_in_every_digit() -> None:
    g = torch.Generator().manual_seed(2)
    bits = torch.randint(0, 0x7F800000, (1, 600), generator=g, dtype=torch.int32)
    bits[0, :300] = bits[0, 0] + torch.randint(-3, 3, (300,), generator=g, dtype=torch.int32)
    scores = bits.view(torch.float32)
    for keep in (1, 140, 299, 450):
        with fenced_empty():
            kept, dropped = kernel("select_kernel").topk_in_order(
                apart(scores.to(device()), 1), keep
            )
        best, rest = pick(scores[0].tolist(), keep)
        assert (kept[0].tolist(), dropped[0].tolist()) == (best, rest)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", ["keys", "hidden", "turned"])
def test_keys_that_are_no_numbers_leave_a_choice_in_range(bad: float, form: str) -> None:
    angles = rope_tables(rope_angles(150, 16))
    q, x, weight = randn(1, 4, 16), randn(1, 150, 2 * 16), randn(32, 32)
    x[0, 77, :5] = bad
    with use_backend("reference"):
        want = select(form, q, x, weight, angles)
    got = select(form, q, x, weight, angles)
    assert torch.equal(got.kept.cpu(), want.kept.cpu())
    assert torch.equal(got.dropped.cpu(), want.dropped.cpu())
    assert bool((got.scores.isnan() == want.scores.isnan()).all())


def select(form: str, q: Any, x: Any, weight: Any, angles: Any) -> TopKResult:
    if form == "keys":
        return attention_topk(q, x.unflatten(-1, (2, 16)), 20, (10, 120))
    return attention_topk_hidden(
        q, x, weight, 20, (10, 120), rope=angles if form == "turned" else None
    )


def test_keys_of_minus_infinity_get_nothing() -> None:
    """A tile may hold nothing else, and then its maximum is minus infinity."""
    q, k = torch.ones(1, 2, 8), randn(1, 300, 1, 8)
    k[:, 100:290] = float("-inf")
    got = attention_topk(q.to(device()), k, 50, (90, 210))
    assert not bool(got.scores.isnan().any())
    assert bool((got.scores[0, 10:200] == 0).all())
    assert got.kept[0].tolist() == [*range(40), *range(200, 210)]


@pytest.mark.parametrize("form", ["keys", "hidden", "turned"])
def test_ends_that_lie_on_the_device_are_found_there(form: str) -> None:
    """The host never reads the offsets. The bits equal those of a call on the slice."""
    cu = torch.tensor([0, 5, 5 + 150, 220], dtype=torch.int32, device=device())
    angles = rope_tables(rope_angles(220, 16))
    q, x, weight, norm = randn(1, 6, 16), randn(1, 220, 32), randn(32, 32), randn(32)
    bias = randn(32, seed=1)
    from tvkernels.attention_topk.op import _by_hidden, _by_keys

    def run(rows: slice, ends: torch.Tensor | None) -> Any:
        if form == "keys":
            return _by_keys(q, x[:, rows].unflatten(-1, (2, 16)), 20, [3, 140], 0.3, ends)
        cos, sin = (t[rows] for t in angles) if form == "turned" else (None, None)
        return _by_hidden(
            q, x[:, rows], weight, bias, norm, 0.1, cos, sin, None, 20, [3, 140], 0.3, ends
        )  # fmt: skip

    for mine, sliced in zip(run(slice(None), cu[1:3]), run(slice(5, 155), None)):
        assert torch.equal(mine, sliced)


@pytest.mark.parametrize(("ends", "rows"), [((-9, 150), (0, 150)), ((40, 999), (40, 220))])
def test_ends_on_a_device_that_lead_too_far_are_cut(
    ends: tuple[int, int], rows: tuple[int, int]
) -> None:
    """The host cannot check offsets on a device, so the kernel clamps them to the sequence."""
    from tvkernels.attention_topk.op import _by_keys

    with fenced_empty():
        q, k = apart(randn(1, 6, 16), 1), apart(randn(1, 220, 2, 16), 1)
        cu = torch.tensor(ends, device=device())
        got = _by_keys(q, k, 20, [3, 140], 0.3, cu)
        for mine, sliced in zip(got, _by_keys(q, k[:, slice(*rows)], 20, [3, 140], 0.3, None)):
            assert torch.equal(mine, sliced)


def test_more_tiles_than_a_step_adds_up() -> None:
    """The rows have their maximum in the first step, in the last step, and a step of minus infinity
    only. One row is so negative that its terms would vanish if a masked lane counted as 0."""
    scores = kernel("scores_kernel")
    most, sums = randn(3, 40), randn(3, 40).abs() + 1
    most[0, 3], most[1, 39], most[2, 16:32] = 9.0, 9.0, float("-inf")
    most[0] -= 500
    with fenced_empty():
        totals = torch.empty(3, 2, device=device())
        scores.totals_kernel[(3,)](
            apart(most, 1), apart(sums, 1), totals, 40, ACC=scores.tl.float32, BLOCK=16
        )
    torch.testing.assert_close(totals[:, 0], most.max(1).values)
    top = totals[:, :1].double()
    want = 1 / (sums.double() * (most.double() - top).exp2()).sum(1)
    torch.testing.assert_close(totals[:, 1].double(), want, rtol=1e-5, atol=0)


def test_two_runs_give_the_same_bits() -> None:
    for call, given in ((attention_topk, keys_call()), (attention_topk_hidden, hidden_call())):
        assert all(torch.equal(a, b) for a, b in zip(call(**given), call(**given)))


def test_opcheck() -> None:
    from tvkernels.attention_topk.op import _by_hidden, _by_keys

    q, x, weight, norm = randn(2, 6, 16), randn(2, 60, 32), randn(32, 32), randn(32)
    cos, sin = rope_tables(rope_angles(60, 16))
    cu = torch.tensor([4, 50], device=device())
    keys = x.unflatten(-1, (2, 16))
    torch.library.opcheck(_by_keys.op, (q, keys, 5, [3, 50], 0.3, None))
    torch.library.opcheck(_by_keys.op, (q[:1], keys[:1], 5, [3, 40], 0.3, cu))
    rest = (5, [3, 50], 0.3, None)
    torch.library.opcheck(_by_hidden.op, (q, x, weight, None, None, 0.0, None, None, x, *rest))
    torch.library.opcheck(_by_hidden.op, (q, x, weight, norm, norm, 0.1, cos, sin, None, *rest))


def test_torch_compiles_it_whole() -> None:
    keys, hidden = keys_call(), hidden_call()
    # while it compiles the offsets are read by the kernel, on the host as well
    packed = {**keys_call(), "cu_seqlens": torch.tensor([0, 40, 300])}
    packed |= {"k": packed["k"][:1], "span": [(2, 30), (0, 200)], "keep": [3, 99]}

    def both() -> tuple[torch.Tensor, ...]:
        chosen = *attention_topk(**keys), *attention_topk_hidden(**hidden)
        return *chosen, *attention_topk(**packed)

    for compiler in compilers():
        torch._dynamo.reset()
        compiled = torch.compile(both, fullgraph=True, backend=compiler)
        for got, want in zip(compiled(), both()):
            assert_alike(got, want, rounding=compiler == "inductor")


@pytest.mark.skipif(not COMPILED, reason="no GPU: nothing to capture")
def test_a_graph_captures_it() -> None:
    keys, hidden = keys_call(), hidden_call()
    check_capture(lambda: (*attention_topk(**keys), *attention_topk_hidden(**hidden)))


@pytest.mark.parametrize(
    ("form", "name", "axis"),
    [
        *(("keys", "x", axis) for axis in (1, 2, 3)),
        *(("keys", "q", axis) for axis in (1, 2)),
        *(("hidden", name, axis) for name in ("q", "x") for axis in (1, 2)),
        *(("turned", name, axis) for name in ("q", "x") for axis in (1, 2)),
        *((form, "weight", axis) for form in ("hidden", "turned") for axis in (0, 1)),
        *(("turned", name, axis) for name in ("cos", "sin") for axis in (0, 1)),
        ("turned", "bias", 0),
    ],
)
def test_offsets_beyond_32_bits(form: str, name: str, axis: int) -> None:
    """The stride itself fits 32 bits, so that only the product with the index does not."""
    cos, sin = rope_tables(rope_angles(5, 16))
    inputs = {"q": randn(1, 3, 16), "x": randn(1, 5, 16), "weight": randn(48, 16)}
    if form == "keys":
        inputs["x"] = randn(1, 5, 3, 16)
    inputs |= {"bias": randn(48), "cos": cos, "sin": sin}
    inputs = {n: x.half() for n, x in inputs.items()}

    def run(given: dict[str, torch.Tensor]) -> TopKResult:
        q, x, weight, bias, *tables = given.values()
        if form == "keys":
            return attention_topk(q, x, 2, (1, 4))
        rope = (tables[0], tables[1]) if form == "turned" else None
        return attention_topk_hidden(q, x, weight, 2, (1, 4), k_bias=bias, rope=rope)

    near = inputs[name]
    strides = list(near.stride())
    strides[axis] = 3 * 2**30 // (near.shape[axis] - 1)
    far = lazily(tuple(near.shape), tuple(strides), near.dtype, device()).copy_(near)
    for got, want in zip(run({**inputs, name: far}), run(inputs)):
        assert_alike(got, want, rounding=COMPILED)


def test_logits_beyond_32_bits() -> None:
    """Few rows, but so long that the last one starts past element 2^31."""
    scores = kernel("scores_kernel")
    tiles, rows = 5 * 2**20, 5
    logits = lazily((rows, tiles * scores.TILE), (tiles * scores.TILE, 1), torch.float32, device())
    logits[:, :6] = randn(rows, 6)
    totals = torch.tensor([[0.0, 1.0]] * rows, device=device())
    got = torch.empty(1, 4, device=device())
    scores.mean_kernel[(1, 1)](
        logits, totals, got, rows, tiles, 1, 4,
        ACC=scores.tl.float32, ROWS=scores.MEAN_ROWS, TILE=scores.TILE,
    )  # fmt: skip
    torch.testing.assert_close(got[0], logits[:, 1:5].exp2().mean(0))


def test_a_turned_query_at_its_own_place() -> None:
    """The rule of VideoChat-Flash on several tiles: the last token asks."""
    angles = rope_angles(200, 20)
    q = rotated(randn(1, 4, 20), angles[199])
    hidden, weight = randn(1, 200, 40), randn(40, 40) / 6
    got = attention_topk_hidden(q, hidden, weight, 20, (5, 170), rope=rope_tables(angles))
    want = naive_hidden(
        q.double(), hidden.double(), weight.double(), 20, (5, 170), angles=angles
    )  # fmt: skip
    assert_same(got, want)
