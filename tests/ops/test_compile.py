"""torch.compile: every op, and a patched layer, compile at most twice, whatever the lengths.

On the references, and on the kernels' path without values: on meta tensors an operator runs its fake
and no kernel. Each op's own tests compile its kernels with values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.utils._pytree import tree_map_only

import tvkernels
from tests.contract import as_tuple, on_device
from tests.ops.test_every_op import CASES, STATES, Tensors
from tvkernels.core import backend

# one for the first length, which is specialised, and one for every other
MOST_GRAPHS = 2
LENGTHS = (70, 33, 131, 34, 97)

Randn = Callable[..., torch.Tensor]


def _lengthened(make: Callable[[int, Randn], Tensors], length: int) -> Tensors:
    """The case with `length` in the place of its 40 to 50 tokens."""
    generator = torch.Generator().manual_seed(length)

    def randn(*shape: int) -> torch.Tensor:
        sizes = [length if size in (40, 45, 50) else size for size in shape]
        return torch.randn(*sizes, generator=generator)

    made = make(2, randn)
    made.pop("cu_seqlens", None), made.pop("return_varlen_states", None)
    return made


def inputs_of(op: str, length: int) -> Tensors:
    made = _lengthened(CASES[op], length)
    if op.startswith("attention_topk"):
        made["span"] = (3, length - 10)
    if op == "attention_topk_hidden":
        made["rope"] = tuple(table[:length] for table in made["rope"])
    if op == "compact":
        made["positions"] = torch.arange(length).repeat(2, 1)
        made["dropped"] = torch.tensor([[0, 3, 4, length - 1]]).repeat(2, 1)
    return on_device(made)


# one tensor of all tokens, or a batch of one token each: the length is that of the batch
PACKED: dict[str, Callable[[int, Randn], Tensors]] = {
    "causal_conv1d_varlen_states": lambda n, randn: {
        "x": randn(n, 6), "cu_seqlens": torch.tensor([0, 17, n]), "state_len": 3,
    },
    "mamba_chunk_scan_combined": lambda n, randn: {
        "x": randn(1, n, 4, 6), "dt": randn(1, n, 4), "A": -randn(4).square() - 1,
        "B": randn(1, n, 2, 5), "C": randn(1, n, 2, 5), "chunk_size": 16, "dt_softplus": True,
        "seq_idx": (torch.arange(n) >= 17)[None].int(), "cu_seqlens": torch.tensor([0, 17, n]),
        "return_varlen_states": True,
    },
    "gated_cross_attention": lambda n, randn: {
        "text": randn(1, n, 32), "q": randn(1, n, 4, 8), "k": randn(1, n, 2, 8),
        "v": randn(1, n, 2, 8), "alpha": randn(1), "cu_seqlens_q": torch.tensor([0, 17, n]),
        "cu_seqlens_k": torch.tensor([0, 9, n]),
    },
    "prefix_attention": lambda n, randn: {
        "q": randn(2, 3, 4, 8), "key": randn(2, n, 2, 8), "value": randn(2, n, 2, 8),
        "lengths": torch.tensor([n, 5]), "prefix": (randn(1, 2 * n, 2, 8), randn(1, 2 * n, 2, 8)),
    },
    "mamba2_decode_step": lambda n, randn: {**CASES["mamba2_decode_step"](n, randn),
        "conv_state": randn(n, 44, 4), "ssm_state": randn(n, 4, 6, 5)},
    "causal_conv1d_update": lambda n, randn: {**CASES["causal_conv1d_update"](n, randn),
        "conv_state": randn(n, 6, 4)},
    "replay_flush": lambda n, randn: CASES["replay_flush"](n, randn, n),
    "replay_state_update": lambda n, randn: CASES["replay_state_update"](n, randn, n),
    "selective_state_update": lambda n, randn: {**CASES["selective_state_update"](n, randn),
        "state": randn(n, 4, 6, 5)},
}  # fmt: skip


def packed_of(op: str, length: int) -> Tensors:
    generator = torch.Generator().manual_seed(length)
    return on_device(PACKED[op](length, lambda *shape: torch.randn(*shape, generator=generator)))


class Graphs:
    """A backend of torch.compile that hands each graph to `compiler`, and counts them."""

    def __init__(self, compiler: str) -> None:
        self.compiler, self.count = torch._dynamo.lookup_backend(compiler), 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.count += 1
        return self.compiler(graph, inputs)


def results(call: Callable[..., Any], inputs: Tensors, learns: bool) -> list[torch.Tensor]:
    """Results, tensors written in place and, where the op learns, gradients of all inputs."""
    copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    floats = [v for v in copies.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    for leaf in floats if learns else ():
        leaf.requires_grad_()
    out = [x for x in as_tuple(call(**copies)) if x is not None]
    live = [x for x in out if x.requires_grad]
    found = [*out, *(() if learns else floats)]
    if live:
        found += torch.autograd.grad(
            sum(x.cos().sum() for x in live), floats, materialize_grads=True
        )
    return [x.detach() for x in found]


def assert_compiles_once(
    call: Any,
    make: Callable[[int], Tensors],
    learns: bool,
    compiler: str = "aot_eager",
    lengths: tuple[int, ...] = LENGTHS,
) -> None:
    torch._dynamo.reset()
    graphs = Graphs(compiler)
    compiled = torch.compile(call, backend=graphs, fullgraph=True)
    for length in lengths:
        inputs = make(length)
        for got, want in zip(results(compiled, inputs, learns), results(call, inputs, learns)):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert graphs.count <= MOST_GRAPHS


# how an op is called at a length: whole sequences, then packed ones and batches of steps
CALLS: dict[str, tuple[str, Callable[[str, int], Tensors]]] = {
    **{op: (op, inputs_of) for op in CASES if op not in {*STATES, "causal_conv1d_varlen_states"}},
    **{f"{op}, packed": (op, packed_of) for op in PACKED},
}


def learns(op: str) -> bool:
    return op not in STATES and not op.startswith("attention_topk")


@pytest.mark.parametrize("case", CALLS)
def test_an_op_compiles_once_for_all_lengths(case: str) -> None:
    op, make = CALLS[case]
    assert_compiles_once(getattr(tvkernels, op), lambda n: make(op, n), learns(op))


@pytest.mark.parametrize("case", CALLS)
def test_the_kernels_path_compiles_once_for_all_lengths(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op, make = CALLS[case]
    monkeypatch.setattr(backend, "_obstacle", lambda device: None)

    def without_values(length: int) -> Tensors:
        with tvkernels.use_backend("reference"):
            return tree_map_only(torch.Tensor, lambda x: x.to("meta"), make(op, length))

    with tvkernels.use_backend("triton"):
        assert_compiles_once(getattr(tvkernels, op), without_values, learns(op))


@pytest.mark.long
@pytest.mark.parametrize("op", ["mamba_chunk_scan_combined", "causal_conv1d_fn", "rms_norm"])
def test_inductor_compiles_once_for_all_lengths(op: str) -> None:
    make, lengths = CALLS[op][1], LENGTHS[:3]
    assert_compiles_once(getattr(tvkernels, op), lambda n: make(op, n), True, "inductor", lengths)


def patched_model(learns: bool, device: str, lengths: tuple[int, ...]) -> None:
    """A patched model of one layer compiles once for all lengths, and every call is on an op."""
    config = transformers.Mamba2Config(
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16,
        state_size=8, n_groups=2, chunk_size=8,
    )  # fmt: skip
    model = transformers.Mamba2ForCausalLM(config).eval().to(device)

    def logits(inputs_embeds: torch.Tensor) -> torch.Tensor:
        return model(inputs_embeds=inputs_embeds, use_cache=False).logits

    def embedded(length: int) -> Tensors:
        generator = torch.Generator().manual_seed(length)
        return {"inputs_embeds": torch.randn(2, length, 32, generator=generator).to(device)}

    with torch.set_grad_enabled(learns), tvkernels.patch_transformers("mamba2") as patch:
        assert_compiles_once(logits, embedded, learns, lengths=lengths)
    assert not patch.fallbacks


@pytest.mark.parametrize("learns", [False, True])
def test_a_patched_model_compiles_once_for_all_lengths(learns: bool) -> None:
    patched_model(learns, "cpu", LENGTHS)


@pytest.mark.parametrize("learns", [False, True])
def test_a_patched_model_compiles_once_on_the_kernels_path(
    learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_obstacle", lambda device: None)
    with tvkernels.use_backend("triton"):
        patched_model(learns, "meta", LENGTHS[:3])
