"""`use_backend` forces the context that called it and no other, however contexts overlap."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import multiprocessing
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tvkernels
from tvkernels import use_backend
from tvkernels.core.backend import backend_for, forced_backend
from tvkernels.core.holds import called, entered, left


def now() -> tuple[str | None, str | None]:
    """What two kernels are forced to here."""
    return forced_backend("ssd"), forced_backend("tome")


REFERENCE, TRITON, NOTHING = ("reference",) * 2, ("triton",) * 2, (None, None)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Any:
    yield
    assert now() == NOTHING


def in_own_context(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test that leaves statements in force, in a context that ends with it."""
    return functools.wraps(test)(lambda *a, **k: contextvars.copy_context().run(test, *a, **k))


@in_own_context
def test_a_statement_acts_until_it_is_undone():
    chosen = use_backend("reference")
    assert now() == REFERENCE
    later = use_backend("triton", "tome")
    assert now() == ("reference", "triton")
    chosen.undo()
    assert now() == (None, "triton")
    chosen.undo()
    later.undo()
    assert now() == NOTHING


@in_own_context
def test_a_statement_is_undone_by_a_block_of_it():
    chosen = use_backend("reference")
    with chosen as same:
        assert same is chosen
        assert now() == REFERENCE
    assert now() == NOTHING


def test_names_are_checked_at_the_call():
    for arguments, name, got in [
        (("no such backend",), "name", "'no such backend'"),
        ((None,), "name", "None"),
        ((["triton"],), "name", "['triton']"),
        (("reference", "ssd", "mixer"), "kernels", "'mixer'"),
        (("reference", ["ssd"]), "kernels", "['ssd']"),
    ]:
        with pytest.raises(ValueError, match=rf"^use_backend: {name} must be .*{re.escape(got)}$"):
            use_backend(*arguments)
    assert now() == NOTHING


def test_blocks_may_end_in_any_order():
    first, second = use_backend("reference"), use_backend("triton")
    first.__enter__()
    second.__enter__()
    assert now() == TRITON
    first.__exit__(None, None, None)
    assert now() == TRITON
    second.__exit__(None, None, None)


def test_one_object_is_entered_again_inside_itself_and_afterwards():
    chosen = use_backend("reference")
    with chosen:
        with chosen:
            assert now() == REFERENCE
        assert now() == REFERENCE
    assert now() == NOTHING
    with chosen:
        assert now() == REFERENCE


def test_a_block_without_a_yield_forces_no_caller_of_a_generator():
    """A block around a yield does: a generator runs in its caller's context."""

    def without(name):
        with use_backend(name):
            value = now()
        yield value

    def around(name):
        with use_backend(name):
            yield now()

    found = without("reference")
    assert (next(found), now()) == (REFERENCE, NOTHING)
    leaking = around("reference")
    assert (next(leaking), now()) == (REFERENCE, REFERENCE)
    leaking.close()
    with pytest.raises(ValueError, match="use `with` blocks inside it that hold no yield"):
        use_backend("reference")(without)


def test_two_generators_that_end_in_the_order_they_began():
    def forcing(name):
        with use_backend(name):
            yield now()

    first, second = forcing("reference"), forcing("triton")
    assert (next(first), next(second)) == (REFERENCE, TRITON)
    assert next(first, None) is None
    assert now() == TRITON
    assert next(second, None) is None


def test_threads_that_overlap():
    """The first to enter is the first to leave, and a third thread sees nothing."""
    entered, inside, left = threading.Event(), threading.Event(), threading.Event()
    seen: dict[str, Any] = {}

    def first():
        with use_backend("reference"):
            entered.set()
            assert inside.wait(10)
        left.set()
        seen["first"] = now()

    def second():
        assert entered.wait(10)
        with use_backend("triton"):
            inside.set()
            assert left.wait(10)
            seen["second"] = now()

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(first), pool.submit(second)]
        assert entered.wait(10)
        seen["third"] = pool.submit(now).result()
        for run in runs:
            run.result()
        after = [pool.submit(now).result() for _ in range(3)]
    assert seen == {"first": NOTHING, "second": TRITON, "third": NOTHING}
    assert after == [NOTHING] * 3


def test_32_threads_at_once_leak_nothing():
    """Each nests, and computes, among the others; the pool's threads are used again."""
    barrier = threading.Barrier(32)
    x = torch.randn(2, 8)
    expected = tvkernels.relu2(x)

    def work(i):
        name = ("reference", "triton")[i % 2]
        barrier.wait(30)
        for _ in range(20):
            with use_backend(name):
                assert now() == (name, name)
                with use_backend("reference", "relu2"):
                    assert torch.equal(tvkernels.relu2(x), expected)
                    assert now() == (name, name)
                assert forced_backend("relu2") == name
            assert now() == NOTHING

    with ThreadPoolExecutor(32) as pool:
        for run in [pool.submit(work, i) for i in range(32)]:
            run.result()
        assert {run.result() for run in [pool.submit(now) for _ in range(64)]} == {NOTHING}


def test_tasks_of_asyncio():
    async def task(name, first, then):
        with use_backend(name):
            first.set()
            await then.wait()
            return now(), await asyncio.to_thread(now)

    async def both():
        first, second = asyncio.Event(), asyncio.Event()
        runs = [task("reference", first, second), task("triton", second, first)]
        found = await asyncio.gather(*runs)
        return found, now()

    assert asyncio.run(both()) == ([(REFERENCE,) * 2, (TRITON,) * 2], NOTHING)


def test_a_decorated_function_is_forced_while_it_runs():
    @use_backend("reference", "ssd")
    def function(depth):
        """What it does."""
        return now() if not depth else function(depth - 1)

    @use_backend("triton")
    async def coroutine():
        return now()

    assert now() == NOTHING
    assert function(0) == function(2) == ("reference", None)
    assert (function.__name__, function.__doc__) == ("function", "What it does.")
    assert asyncio.run(coroutine()) == TRITON
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(function, 1).result() == ("reference", None)


def test_what_cannot_be_decorated_is_named_and_nothing_stays_in_force():
    def generator():
        yield

    for wrong in (generator, int, 3):
        with pytest.raises(ValueError, match=r"^use_backend: function must "):
            use_backend("reference")(wrong)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_a_forked_worker_starts_with_its_parents_choice_and_keeps_its_own():
    context = multiprocessing.get_context("fork")
    with use_backend("reference", "ssd"):
        answers = context.SimpleQueue()
        worker = context.Process(target=_in_worker, args=(answers,))
        worker.start()
        assert answers.get() == [("reference", None), ("reference", "triton"), ("reference", None)]
        worker.join(30)
        assert now() == ("reference", None)


def _in_worker(answers: Any) -> None:
    seen = [now()]
    with use_backend("triton", "tome"):
        seen.append(now())
    answers.put([*seen, now()])


def test_a_thread_of_autograd_sees_the_context_of_the_call_of_backward():
    """Nodes of a GPU run in a thread of PyTorch's, which is handed the caller's context."""

    def device_thread(context):
        torch._C._stash_obj_in_tls("context", context)
        try:
            return now()
        finally:
            torch._C._remove_obj_from_tls("context")

    with use_backend("reference"):
        context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(device_thread, context).result() == REFERENCE
        assert pool.submit(now).result() == NOTHING


def test_a_checkpointed_function_runs_again_as_forced_around_backward():
    seen = []

    def function(x):
        seen.append(now())
        return tvkernels.relu2(x).sum()

    with use_backend("reference"):
        x = torch.randn(3, requires_grad=True)
        checkpoint(function, x, use_reentrant=False).backward()
    assert seen == [REFERENCE] * 2
    torch.testing.assert_close(x.grad, 2 * x.detach().clamp_min(0))


def test_a_compiled_function_follows_each_context_and_compiles_once_for_each_choice():
    torch._dynamo.reset()
    compiled = []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    @torch.compile(backend=count, fullgraph=True)
    def function(x):
        return x + 1 if backend_for(x, "tome") == "reference" else x - 1

    x = torch.zeros(2)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            assert function(x)[0] == 1
            with use_backend("reference"):
                assert function(x)[0] == 1
                assert pool.submit(function, x).result()[0] == 1
            # where Triton cannot run, a forced Triton is an error, not the graph of before
            with use_backend("triton"):
                assert forced_backend("tome") == "triton"
    assert len(compiled) == 2


def test_inside_a_compiled_function():
    torch._dynamo.reset()

    @use_backend("triton", "ssd")
    def part():
        return now()

    @torch.compile(backend="eager", fullgraph=True)
    def function(x):
        with use_backend("reference"):
            inner = part()
            out = tvkernels.relu2(x)
        return out, inner, now()

    out, inner, after = function(torch.ones(2))
    assert (inner, after) == (("triton", "reference"), NOTHING)
    assert torch.equal(out, torch.ones(2))
    # what tracing does stays inside tracing
    assert now() == NOTHING


def test_holds_end_one_by_one():
    a, b = object(), object()
    holds = called(called((), a), b)
    assert [hold.owner for hold in holds] == [a, b]
    holds = entered(holds, a)
    assert [(hold.owner, hold.in_block) for hold in holds] == [(b, False), (a, True)]
    assert len(entered(holds, a)) == 3
    assert left(left(holds, a), a) == left(holds, a) == called((), b)


@pytest.mark.usefixtures("triton_is_missing")
def test_use_backend_nests_and_restores(cuda):
    with tvkernels.use_backend("reference"):
        with tvkernels.use_backend("triton"), pytest.raises(tvkernels.BackendUnavailable):
            backend_for(cuda, "ssd")
        assert backend_for(cuda, "ssd") == "reference"
    with pytest.raises(tvkernels.BackendUnavailable):
        backend_for(cuda, "ssd")


@pytest.mark.usefixtures("triton_is_missing")
def test_use_backend_restores_after_an_exception(cuda):
    with pytest.raises(KeyError), tvkernels.use_backend("reference"):
        raise KeyError
    with pytest.raises(tvkernels.BackendUnavailable):
        backend_for(cuda, "ssd")


@pytest.mark.usefixtures("triton_is_missing")
def test_use_backend_for_some_kernels_leaves_the_others(cuda, cpu):
    with tvkernels.use_backend("reference", "ssd", "tome"):
        assert backend_for(cuda, "ssd") == backend_for(cuda, "tome") == "reference"
        with pytest.raises(tvkernels.BackendUnavailable):
            backend_for(cuda, "rmsnorm")
        with tvkernels.use_backend("triton", "tome"):
            with pytest.raises(tvkernels.BackendUnavailable):
                backend_for(cpu, "tome")
            assert backend_for(cuda, "ssd") == backend_for(cpu, "rmsnorm") == "reference"
            forced = {row.kernel for row in tvkernels.explain() if "forced" in row.reason}
            assert forced_backend("tome") == "triton"
            assert forced_backend("rmsnorm") is None
            # the mixer composed of three kernels is forced in part
            assert forced == {"ssd", "causal_conv1d, ssd, rmsnorm"}


@pytest.mark.usefixtures("triton_is_missing")
def test_an_unknown_kernel_is_named_and_changes_nothing(cuda):
    sentence = "^use_backend: kernels must be among ssd, .*, got 'mixer'$"
    with (
        pytest.raises(ValueError, match=sentence),
        tvkernels.use_backend("reference", "ssd", "mixer"),
    ):
        pass
    with pytest.raises(tvkernels.BackendUnavailable):
        backend_for(cuda, "tome")


def test_an_unknown_backend_is_named_and_changes_nothing(cpu):
    sentence = "^use_backend: name must be one of reference, triton, got 'cuda'$"
    with pytest.raises(ValueError, match=sentence), tvkernels.use_backend("cuda"):  # type: ignore[arg-type]
        pass
    assert backend_for(cpu, "ssd") == "reference"


@pytest.mark.usefixtures("triton_is_missing")
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
def test_a_compiled_function_follows_use_backend():
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def norm(x):
        return tvkernels.rms_norm(x, torch.ones(4), 1e-5)

    x = torch.randn(2, 4)
    expected = torch.nn.functional.rms_norm(x, (4,), eps=1e-5)
    torch.testing.assert_close(norm(x), expected)
    with tvkernels.use_backend("reference"):
        torch.testing.assert_close(norm(x), expected)
    # the graph compiled before is not what a forced Triton meets
    with (
        tvkernels.use_backend("triton"),
        pytest.raises(tvkernels.BackendUnavailable, match="Triton is not installed"),
    ):
        norm(x)
