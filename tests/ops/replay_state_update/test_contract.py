"""replay_state_update against a float64 recurrence, and against the plain step token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contract import (
    COMPILED,
    assert_alike,
    check_contract,
    compilers,
    device,
    errors,
)
from tests.ops.common import DTYPES, exact
from tests.ops.replay_state_update.common import (
    HELD,
    PER_TOKEN,
    VARIANTS,
    cut,
    fed,
    flushed,
    fresh,
    naive_flush,
    naive_replay,
    plain_steps,
    run,
    step_inputs,
    tokens,
)
from tvkernels import replay_flush, replay_state_update


def naive(**inputs: Any) -> tuple[torch.Tensor, ...]:
    """The recurrence, with the step sizes kept in float32 at least, as the op keeps them."""
    steps = inputs["pending_dt"]
    steps = steps.to(torch.promote_types(steps.dtype, torch.float32))
    return naive_replay(**{**inputs, "pending_dt": steps})


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str) -> None:
    check_contract(run, naive, step_inputs(**VARIANTS[variant]))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("variant", ["several tokens", "rows"])
def test_contract_in_16_bit(variant: str, dtype: torch.dtype) -> None:
    check_contract(run, naive, step_inputs(**VARIANTS[variant]), dtype=dtype)


SIZES = {
    "headdim 80": {"batch": 1, "heads": 2, "groups": 1, "dim": 80, "dstate": 128},
    "headdim 64": {"batch": 1, "heads": 1, "groups": 1, "dim": 64, "dstate": 16},
    "several blocks, none full": {"dim": 37, "dstate": 100},
    "one channel, one state": {"dim": 1, "dstate": 1},
    "many states": {"batch": 1, "heads": 2, "dim": 3, "dstate": 300},
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: str) -> None:
    check_contract(run, naive, step_inputs(**{"batch": 2, **SIZES[size]}))


SCHEDULES = {
    "room for one": (1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    "token by token": (3, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    "never written": (9, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    "calls of several": (4, [3, 4, 8, 9]),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_outputs_and_states_are_those_of_plain_steps(backend: str, schedule: str) -> None:
    """Bit for bit, whenever the state is written."""
    capacity, ends = SCHEDULES[schedule]
    given = tokens(2, 9, torch.float32)
    outs, state = plain_steps(given)
    held = fresh(2, capacity, torch.float32)
    assert_alike(fed(held, given, ends), outs, rounding=COMPILED)
    assert_alike(flushed(held, 9), state, rounding=COMPILED)


def test_the_state_is_written_at_one_step_of_capacity(backend: str) -> None:
    given, held = tokens(2, 9, torch.float32), fresh(2, 3, torch.float32)
    begins = []
    for i in range(9):
        before = held["state"].clone()
        fed(held, given, [i + 1], i)
        begins.append(int(held["written"][0, 0]))
        assert torch.equal(held["state"], before) == (begins[-1] == (begins[-2] if i else 0))
    assert begins == [0, 0, 0, 3, 3, 3, 6, 6, 6]


@pytest.mark.parametrize("accepted", [0, 1, 3])
@pytest.mark.parametrize("before", [1, 3, 5])
def test_tokens_that_are_taken_back_leave_no_trace(
    backend: str, before: int, accepted: int
) -> None:
    """Four tokens are fed and `accepted` of them stay: all is as if the others had not been fed."""
    sure, length = tokens(2, 12, torch.float32), before + accepted
    drafted = {k: v.clone() if k in PER_TOKEN else v for k, v in sure.items()}
    drafted["x"][:, length:] *= -2
    held, alone = fresh(2, 4, torch.float32), fresh(2, 4, torch.float32)
    first = [1, before] if before > 1 else [1]
    fed(held, drafted, [*first, before + 4])
    fed(alone, sure, [*first, length] if accepted else first)
    rest = list(range(length + 1, length + 4))
    assert torch.equal(fed(held, sure, rest, length), fed(alone, sure, rest, length))
    assert torch.equal(flushed(held, rest[-1]), flushed(alone, rest[-1]))


def test_rows_take_back_different_numbers_of_tokens(backend: str) -> None:
    given = tokens(3, 8, torch.float64)
    held = fresh(3, 4, torch.float64)
    fed(held, given, [4])
    seqlens = torch.tensor([1, 4, 2], dtype=torch.int32, device=device())
    out = replay_state_update(**held, cache_seqlens=seqlens, **cut(given, 4, 6))
    for row, length in enumerate(seqlens.tolist()):
        rows = slice(row, row + 1)
        one = {k: v[rows] if k in PER_TOKEN else v for k, v in given.items()}
        alone = fresh(1, 4, torch.float64)
        fed(alone, one, [length])
        want = replay_state_update(**alone, cache_seqlens=seqlens[rows], **cut(one, 4, 6))
        torch.testing.assert_close(out[rows], want, **exact)


def test_is_as_close_to_the_truth_as_plain_steps() -> None:
    """Over 512 tokens, in outputs and in the last state; the kernel's bits are those of its steps."""
    given = tokens(1, 512, torch.float32, heads=2, groups=1, dim=4, dstate=8)
    truth = plain_steps({k: v.double() if hasattr(v, "double") else v for k, v in given.items()})
    plain = plain_steps(given)
    held = fresh(1, 8, torch.float32, heads=2, groups=1, dim=4, dstate=8)
    ours = fed(held, given, list(range(4, 513, 4))), flushed(held, 512)
    for got, theirs, true in zip(ours, plain, truth):
        assert all(a <= 1.01 * b for a, b in zip(errors(got, true), errors(theirs, true)))


def test_a_16_bit_state_is_rounded_at_writes_alone(backend: str) -> None:
    given = tokens(1, 24, torch.float32)
    narrow = fresh(1, 8, torch.float32)
    narrow["state"] = narrow["state"].bfloat16()
    wide = fresh(1, 8, torch.float32)
    ends = list(range(1, 9))
    assert torch.equal(fed(narrow, given, ends), fed(wide, given, ends))
    assert torch.equal(flushed(narrow, 8), flushed(wide, 8).bfloat16())


@pytest.mark.parametrize("variant", ["one token", "rows", "padding", "none pending"])
def test_a_flush_writes_what_is_pending(backend: str, variant: str) -> None:
    made = step_inputs(**VARIANTS[variant])
    held = {name: made[name].clone() for name in HELD}
    rows, seqlens = made.get("state_batch_indices"), made["cache_seqlens"]
    state, written = naive_flush(**held, cache_seqlens=seqlens, state_batch_indices=rows)
    replay_flush(**held, cache_seqlens=seqlens, state_batch_indices=rows)
    torch.testing.assert_close(held["state"], state, **exact)
    assert torch.equal(held["written"], written)
    for name in HELD[1:4]:
        assert torch.equal(held[name], made[name])
    again = held["state"].clone()
    replay_flush(**held, cache_seqlens=seqlens, state_batch_indices=rows)
    assert torch.equal(held["state"], again)


def test_one_token_needs_no_dimension_for_it(backend: str) -> None:
    given = step_inputs()
    bare = {k: v[:, 0] if k in PER_TOKEN else v for k, v in given.items()}
    (out, *held), (expected, *others) = run(**bare), run(**given)
    assert torch.equal(out, expected[:, 0])
    assert all(torch.equal(a, b) for a, b in zip(held, others))


def test_layouts(backend: str) -> None:
    given = step_inputs()
    want = naive_replay(**given)
    for name in (*HELD, "x", "z", "B", "C"):
        t = given[name]
        apart = torch.zeros([2 * n + 1 for n in reversed(t.shape)], dtype=t.dtype, device=t.device)
        view = apart.permute(*reversed(range(t.ndim)))[(slice(1, None, 2),) * t.ndim]
        given[name] = view.copy_(t)
    given |= {
        "D": torch.stack([given["D"]] * 2, 1)[:, 0],
        "A": given["A"].repeat_interleave(2)[::2],
    }
    got = replay_state_update(**given), *(given[name] for name in HELD)
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours, theirs, **exact)


@pytest.mark.usefixtures("backend")
def test_compiles_in_one_graph() -> None:
    given = step_inputs(**{**VARIANTS["rows"], "seqlen": 2})
    start = {name: given.pop(name) for name in HELD}
    expected = run(**start, **given)

    def call(held: dict[str, torch.Tensor]) -> torch.Tensor:
        out = replay_state_update(**held, **given)
        rows = given.get("state_batch_indices")
        replay_flush(**held, cache_seqlens=given["cache_seqlens"], state_batch_indices=rows)
        return out

    eager = {k: v.clone() for k, v in start.items()}
    call(eager)
    for compiler in compilers("eager"):
        torch._dynamo.reset()
        held = {k: v.clone() for k, v in start.items()}
        out = torch.compile(call, fullgraph=True, backend=compiler)(held)
        torch.testing.assert_close(out, expected[0], **exact)
        for name in HELD:
            torch.testing.assert_close(held[name], eager[name], **exact)


def test_meta_tensors() -> None:
    given = step_inputs(seqlen=2, z=None)
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    out = replay_state_update(**meta)
    assert (out.shape, out.dtype, out.device.type) == ((2, 2, 4, 5), torch.float64, "meta")


def test_is_for_inference(backend: str) -> None:
    given = step_inputs()
    given["x"].requires_grad_()
    assert not any(t.requires_grad for t in run(**given))


def test_what_is_not_pending_is_not_read(backend: str) -> None:
    """Slots beside the pending ones may hold anything; two tokens are pending in row 0."""
    given = step_inputs()
    expected = run(**given)[0]
    free = [slot for slot in range(6) if slot not in (4, 5)]
    for name in ("pending_x", "pending_dt", "pending_B"):
        given[name] = given[name].clone()
        given[name][0, free], given[name][1] = torch.nan, torch.nan
    assert torch.equal(run(**given)[0], expected)


def test_state_that_spans_the_end_of_the_ring(backend: str) -> None:
    begin = torch.tensor([[5], [2**31 - 100]], dtype=torch.int32).repeat(1, 4)
    given = step_inputs(written=begin, cache_seqlens=begin[:, 0] + 3, seqlen=3)
    for got, want in zip(run(**given), naive_replay(**given)):
        torch.testing.assert_close(got, want, **exact)
