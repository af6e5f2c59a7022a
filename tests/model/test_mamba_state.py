"""A state with pending tokens is, to whoever reads, copies or continues it, the one without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from timeviper_fast.errors import ArgumentError
from timeviper_fast.model.cache import HybridCache
from timeviper_fast.model.mamba_state import MambaState
from timeviper_fast.model.nemotron_h import Mamba2
from timeviper_fast.model.stack import Packing
from timeviper_fast.presets import preset

CONFIG = preset("tiny").backbone

Mixer = Callable[[torch.Tensor, MambaState], torch.Tensor]


@pytest.fixture(scope="module")
def mixer() -> Mixer:
    torch.manual_seed(0)
    layer = Mamba2(CONFIG)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def run(u: torch.Tensor, state: MambaState) -> torch.Tensor:
        with torch.no_grad():
            return layer(u, Packing((u.shape[1],), None), state)

    return run


def after(mixer: Mixer, steps: int, capacity: int | None, batch: int = 2) -> MambaState:
    """The state behind a text of three tokens and some steps."""
    state = MambaState(batch, CONFIG, None, torch.float32)
    mixer(inputs(3, batch), state)
    if capacity is not None:
        state.replay(capacity)
    for i in range(steps):
        mixer(inputs(1, batch, i), state)
    return state


def inputs(tokens: int, batch: int = 2, seed: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, CONFIG.hidden_size, generator=generator)


def alike(ours: MambaState, plain: MambaState) -> None:
    torch.testing.assert_close(ours.conv, plain.conv)
    torch.testing.assert_close(ours.ssm, plain.ssm)


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_reading_the_state_writes_the_pending_tokens(mixer: Mixer, steps: int) -> None:
    ours, plain = after(mixer, steps, 3), after(mixer, steps, None)
    assert not torch.equal(ours.behind, plain.behind)
    alike(ours, plain)
    assert torch.equal(ours.behind, ours.ssm)


def test_a_text_behind_pending_tokens(mixer: Mixer) -> None:
    """The scan begins from all of them, and steps behind it have pending tokens of their own."""
    ours, plain = after(mixer, 2, 3), after(mixer, 2, None)
    for tokens in (4, 1, 1, 5, 1):
        torch.testing.assert_close(mixer(inputs(tokens), ours), mixer(inputs(tokens), plain))
    alike(ours, plain)


def test_a_fork_has_what_was_pending_and_goes_on_alone(mixer: Mixer) -> None:
    ours, plain = after(mixer, 2, 3, 1), after(mixer, 2, None, 1)
    fork, other = ours.fork(2), plain.fork(2)
    assert fork.pending is None
    mixer(inputs(1), fork)
    mixer(inputs(1), other)
    alike(fork, other)
    alike(ours, plain)


def test_a_row_is_written_on_the_memory_of_the_batch(mixer: Mixer) -> None:
    ours, plain = after(mixer, 2, 3), after(mixer, 2, None)
    for tokens in (1, 3, 1, 1):
        got = mixer(inputs(tokens, 1), ours.row(1))
        torch.testing.assert_close(got, mixer(inputs(tokens, 1), plain.row(1)))
    for tokens in (1, 1):
        torch.testing.assert_close(mixer(inputs(tokens), ours), mixer(inputs(tokens), plain))
    alike(ours, plain)


def test_another_device_gets_what_was_pending(mixer: Mixer) -> None:
    cache = HybridCache(CONFIG, [None] * CONFIG.num_hidden_layers, batch=2, device="meta")
    layer = CONFIG.pattern.index("M")
    cache.layers[layer] = after(mixer, 2, 3)
    moved = cache.on(torch.device("cpu")).layers[layer]
    assert isinstance(moved, MambaState)
    alike(moved, after(mixer, 2, None))


@pytest.mark.parametrize("capacity", [0, -1, 2.0, True, None])
def test_a_capacity_is_a_number_of_tokens(capacity: object) -> None:
    state = MambaState(1, CONFIG, None, torch.float32)
    with pytest.raises(ArgumentError, match="replay: capacity must be an int of at least 1, got"):
        state.replay(capacity)
