"""A step that a CUDA graph can capture: what of it can be seen without a GPU.

Every step runs the same operations on tensors of the same shapes, writes the same memory and reads
no value. On a GPU the graph itself is compared with steps through Python.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.contract import COMPILED
from tests.inference.one_go import QWEN2, SCHEDULES, backbone, read, words
from tests.model.test_no_waiting import NoWaiting
from timeviper_fast.inference import step
from timeviper_fast.inference.generate import decode
from timeviper_fast.inference.step import decode_step, step_of
from timeviper_fast.model.mamba_state import MambaState
from timeviper_fast.model.nemotron_h import HybridBackbone

NEW = 9


class Operations(TorchDispatchMode):
    """The operations inside the block, with the shapes and strides of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        self.seen.append((str(func), [(tuple(x.shape), x.stride(), x.dtype) for x in tensors]))
        return result


def prefilled(model: HybridBackbone, questions: int = 3, device: str = "cpu"):
    video = read(model, words(4, 1).to(device), words(160, 2).to(device), chunk=37, pushes=50)
    texts = [words(3 + 4 * row, 10 + row).to(device) for row in range(questions)]
    return video.read(texts, max_new_tokens=NEW)


def tensors_of(cache) -> list[torch.Tensor]:
    states = [vars(state).values() for state in cache.layers if state is not None]
    return [value for values in states for value in values if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("replay", [None, 2])
@pytest.mark.parametrize("name", ["shipped", "none"])
def test_every_step_has_the_same_operations_shapes_and_memory(
    name: str, replay: int | None, monkeypatch
) -> None:
    for module in [m for m in sys.modules.values() if m and m.__name__.startswith("tvkernels.")]:
        if hasattr(module, "on_host"):
            monkeypatch.setattr(module, "on_host", lambda _: False)
    model = backbone("M*M-M*M-M*M", SCHEDULES[name])
    cache = prefilled(model).cache
    if replay is not None:
        cache.replay(replay)
    cache.fix()
    steps, places = [], []
    with torch.no_grad():
        for token in range(4):
            with NoWaiting(), Operations() as operations:
                decode_step(model, cache, torch.full((3,), 5 + token))
            steps.append(operations.seen)
            places.append([x.data_ptr() for x in tensors_of(cache)])
    assert len(steps[0]) > 50
    assert steps[1:] == steps[:-1]
    assert places[1:] == places[:-1]


@pytest.mark.parametrize("capacity", [1, 3, 20])
@pytest.mark.parametrize("name", ["shipped", "none"])
def test_replayed_steps_say_the_same(name: str, capacity: int) -> None:
    """Also where rows end at different steps; the states behind the answers are the same."""
    model = backbone("M*M-M*M-M*M", SCHEDULES[name])
    free = torch.stack(list(decode(model, prefilled(model), max_new_tokens=NEW)), 1)
    # two rows end early, at different steps
    stops = {int(free[0, 2]), int(free[1, 5])}
    seen: dict[int | None, list[torch.Tensor]] = {}
    for model.replay in (None, capacity):
        question, logits = prefilled(model), []
        said = list(
            decode(
                model, question, max_new_tokens=NEW, stop_ids=stops,
                on_logits=lambda x, kept=logits: kept.append(x.clone()),
            )
        )  # fmt: skip
        states = [s for s in question.cache.layers if isinstance(s, MambaState)]
        assert all((s.pending is None) == (model.replay is None) for s in states)
        pending = [s.behind.clone() for s in states]
        forks = [s.fork(len(s.position)).behind for s in states]
        assert capacity == 1 or model.replay is None or not torch.equal(pending[0], forks[0])
        seen[model.replay] = [torch.stack(said, 1), torch.stack(logits, 1), *forks]
    assert torch.equal(seen[None][0], seen[capacity][0])
    for plain, ours in zip(seen[None][1:], seen[capacity][1:]):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("questions", [1, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_fixed_steps_say_the_same(name: str, questions: int) -> None:
    model = backbone("M*M-M*M-M*M", SCHEDULES[name])
    free = torch.stack(list(decode(model, prefilled(model, questions), max_new_tokens=NEW)))
    fixed = prefilled(model, questions)
    fixed.cache.fix()
    assert torch.equal(torch.stack(list(decode(model, fixed, max_new_tokens=NEW))), free)


def test_rotary_positions_of_fixed_steps() -> None:
    model = backbone("*-*-*-", (), family=QWEN2)
    free = torch.stack(list(decode(model, prefilled(model), max_new_tokens=NEW)))
    fixed = prefilled(model)
    fixed.cache.fix()
    assert torch.equal(torch.stack(list(decode(model, fixed, max_new_tokens=NEW))), free)


class Recorder:
    """A CUDA graph as far as the code sees it: what is captured runs when it is replayed."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


def test_the_second_step_is_captured_and_later_ones_replay_it(monkeypatch) -> None:
    model, graphs, calls = backbone("M*M", ()), [], []

    class Capture:
        def __init__(self, graph, capture_error_mode) -> None:
            graphs.append(graph)
            # threads that answer or decode meanwhile may allocate, but not capture
            assert capture_error_mode == "thread_local"

        def __enter__(self) -> None:
            assert step._CAPTURING.locked()

        def __exit__(self, *_) -> None: ...

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", Capture)

    def counted(_, cache, token):
        calls.append(token)
        return token * 2

    monkeypatch.setattr(step, "decode_step", counted)
    further = step_of(model, prefilled(model, 1).cache, NEW, graph=True)
    for token in range(4):
        further(torch.tensor([token]))
    [graph] = graphs
    assert graph.replays == 3
    assert len(calls) == 2
    # one buffer takes the tokens of all steps
    assert calls[0] is calls[1]
    assert calls[1].tolist() == [3]


def test_short_answers_and_cpus_take_python() -> None:
    model = backbone("M*M", ())
    cache = prefilled(model, 1).cache
    with torch.no_grad():
        step_of(model, cache, 100, None)(torch.tensor([1]))
    assert not any(getattr(state, "fixed", False) for state in cache.layers)


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU: nothing can be captured")
@pytest.mark.parametrize("questions", [1, 3])
def test_the_graph_says_what_python_says(questions: int) -> None:
    model = backbone("M*M-M*M-M*M", SCHEDULES["shipped"]).cuda()
    said = [
        torch.stack(
            list(
                decode(
                    model,
                    prefilled(model, questions, "cuda"),
                    max_new_tokens=NEW,
                    graph=graph,
                )
            )
        )
        for graph in (False, True)
    ]
    assert torch.equal(*said)
