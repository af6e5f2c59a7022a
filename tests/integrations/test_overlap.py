"""Blocks that overlap: a patch and a stand-in end when the last that holds them leaves."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import pytest
import torch

from tests.integrations.models import build, tokens
from tests.integrations.test_patched_models import close
from tvkernels import patch_transformers, provide, unpatch_transformers, use_backend
from tvkernels.integrations import patching, stand_ins

modeling = import_module("transformers.models.mamba2.modeling_mamba2")


def is_patched() -> bool:
    return patching.replacement(modeling.mamba2_chunk_scan) is not None


def is_provided() -> bool:
    return stand_ins.is_stand_in("mamba_ssm")


KINDS: dict[str, tuple[Callable[[], Any], Callable[[], bool]]] = {
    "patch_transformers": (lambda: patch_transformers("mamba2"), is_patched),
    "provide": (lambda: provide("mamba_ssm"), is_provided),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Any:
    yield
    assert not patching._replaced
    assert not stand_ins._installed
    assert stand_ins._FINDER not in sys.meta_path
    assert not {name for name in sys.modules if name.startswith(("mamba_ssm", "causal_conv1d"))}


@every_kind
def test_the_first_of_two_threads_to_leave_leaves_it_to_the_second(kind):
    begin, there = KINDS[kind]
    entered, inside, left = threading.Event(), threading.Event(), threading.Event()

    def first():
        with begin():
            entered.set()
            assert inside.wait(10)
        left.set()

    def second():
        assert entered.wait(10)
        with begin():
            inside.set()
            assert left.wait(10)
            return there()

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(first), pool.submit(second)]
        assert [run.result() for run in runs] == [None, True]
    assert not there()


@every_kind
def test_one_object_in_two_blocks_and_again(kind):
    begin, there = KINDS[kind]
    held = begin()
    with held:
        with held:
            pass
        assert there()
    assert not there()
    with held:
        assert there()
    assert not there()


@every_kind
def test_a_block_inside_a_statement_ends_nothing(kind):
    begin, there = KINDS[kind]
    statement = begin()
    with begin():
        pass
    assert there()
    with statement:
        pass
    assert not there()


def test_after_all_is_undone_an_old_block_undoes_no_new_patch():
    with patch_transformers("mamba2"):
        unpatch_transformers()
        assert not is_patched()
        new = patch_transformers("mamba2")
    assert is_patched()
    with new:
        pass


def test_what_is_hidden_comes_back_with_the_last_that_leaves(tmp_path, monkeypatch):
    (tmp_path / "causal_conv1d.py").write_text("causal_conv1d_fn = 'real'")
    monkeypatch.syspath_prepend(tmp_path)
    real = import_module("causal_conv1d")
    first, second = provide("causal_conv1d", force=True), provide("causal_conv1d")
    first.remove()
    assert import_module("causal_conv1d") is not real
    second.remove()
    assert import_module("causal_conv1d") is real
    del sys.modules["causal_conv1d"]


def test_32_threads_on_one_patched_model():
    """Each patches, forces a backend, runs and leaves, while the others are inside."""
    model, ids = build("mamba2", num_hidden_layers=1), tokens(1, 9)
    norm = model.backbone.layers[0].mixer.norm
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    barrier = threading.Barrier(32)

    def work(i):
        barrier.wait(60)
        for _ in range(2):
            with torch.no_grad(), use_backend("reference"), patch_transformers("mamba2") as patch:
                close(model(ids, use_cache=False).logits, expected)
                norm(torch.ones(1, 2, 64), torch.ones(1, 1, 64))
                assert is_patched()
            with provide("mamba_ssm", "causal_conv1d"):
                assert is_provided()
        return {row.name for row in patch.fallbacks}

    with ThreadPoolExecutor(32) as pool:
        runs = [pool.submit(work, i) for i in range(32)]
        assert [run.result() for run in runs] == [{"MambaRMSNormGated.forward"}] * 32
    assert not is_patched()
    assert not is_provided()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_forked_workers_are_patched_as_their_parent_and_keep_it_apart():
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def worker():
        seen = [is_patched()]
        unpatch_transformers()
        with patch_transformers("mamba2"):
            seen.append(is_patched())
        answers.put([*seen, is_patched()])

    with patch_transformers("mamba2"):
        workers = [context.Process(target=worker) for _ in range(4)]
        for process in workers:
            process.start()
        assert [answers.get() for _ in workers] == [[True, True, False]] * 4
        for process in workers:
            process.join(60)
        assert is_patched()
