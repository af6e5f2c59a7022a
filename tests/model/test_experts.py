"""The mixture of experts: recorded layers, the routes between experts, and the whole stack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.contract import device
from tests.goldens import golden, manifest
from timeviper_fast.checkpoint.nemotron_h import backbone_config_from_hf, llm_names
from timeviper_fast.config import BackboneConfig
from timeviper_fast.layout import Segment
from timeviper_fast.model.cache import HybridCache
from timeviper_fast.model.experts import Experts, MixtureOfExperts
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.nemotron_h import HybridBackbone

VARIANTS = manifest("moe")["variants"]
TINY = BackboneConfig(
    vocab_size=53,
    hidden_size=32,
    pattern="MEM*E",
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    mamba_num_heads=4,
    mamba_head_dim=8,
    n_groups=2,
    ssm_state_size=8,
    chunk_size=8,
    eos_token_ids=(),
    num_experts=8,
    experts_per_token=3,
    expert_size=16,
    shared_expert_size=24,
    expert_scale=2.5,
)


def recorded_layer(name):
    """The layer of one recorded variant, loaded under the released names."""
    config = backbone_config_from_hf(VARIANTS[name]["config"] | {"hybrid_override_pattern": "E"})
    stored = {
        key.removeprefix(f"{name}."): value
        for key, value in golden("moe").items()
        if key.startswith(f"{name}.mixer.")
    }
    names, state = llm_names(experts=config.num_experts), {}
    for key, value in stored.items():
        [piece] = names(f"backbone.layers.0.{key}")
        state.setdefault(piece.name.removeprefix("layers.0.mixer."), []).append((piece.put, value))
    layer = MixtureOfExperts(config)
    layer.load_state_dict(
        {
            name: torch.stack([value for _, value in sorted(parts, key=lambda part: part[0])])
            if parts[0][0]
            else parts[0][1]
            for name, parts in state.items()
        }
    )
    return layer.to(device())


def of(name, what):
    return golden("moe")[f"{name}.{what}"].to(device())


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_recorded_layers(name):
    """Experts exact; their weights and the sum within rounding."""
    layer, x = recorded_layer(name), of(name, "input")
    experts, weights = layer.gate(x.flatten(0, 1))
    assert torch.equal(experts, of(name, "experts"))
    torch.testing.assert_close(weights, of(name, "weights"), rtol=0, atol=1e-6)
    torch.testing.assert_close(layer(x, None, None), of(name, "output"), rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_correction_bias_decides_the_choice_and_nothing_else():
    layer, x = recorded_layer("raw_weights"), of("raw_weights", "input").flatten(0, 1)
    layer.gate.e_score_correction_bias.fill_(0).add_(torch.arange(8.0, device=device()))
    experts, weights = layer.gate(x)
    assert torch.equal(experts, torch.arange(2, 8, device=device()).expand_as(experts))
    scores = torch.sigmoid(x @ layer.gate.weight.T)
    torch.testing.assert_close(weights, 2.5 * scores[:, 2:], rtol=0, atol=1e-6)


def test_the_router_stays_exact_in_a_model_of_16_bits_and_under_autocast():
    """The same experts as float64 chooses, from the same 16-bit input and weights."""
    layer, x = recorded_layer("plain"), of("plain", "input").flatten(0, 1)
    layer.gate.e_score_correction_bias += 1e-4
    kept = layer.gate.e_score_correction_bias.clone()
    layer.bfloat16()
    assert torch.equal(layer.gate.e_score_correction_bias, kept)
    x = x.bfloat16()
    scores = torch.sigmoid(x.double() @ layer.gate.weight.double().T)
    want = (scores + kept).topk(3).indices.sort().values
    assert torch.equal(layer.gate(x)[0], want)
    with torch.autocast(x.device.type, torch.bfloat16):
        experts, weights = layer.gate(x)
    assert torch.equal(experts, want)
    assert weights.dtype == torch.float32


def experts_and_rows(dtype=torch.float32, **changes):
    config = replace(TINY, **changes)
    layer = Experts(config)
    init_weights(layer, seed=1)
    layer.to(device(), dtype)
    made = torch.Generator().manual_seed(2)
    x = torch.randn(11, config.hidden_size, generator=made).to(device(), dtype)
    # no token chooses the expert 5
    chosen = torch.stack([torch.randperm(5, generator=made)[:3] for _ in range(11)])
    chosen[4, 0] = 7
    weights = torch.rand(11, 3, generator=made)
    return layer, x, chosen.sort().values.to(device()), weights.to(device())


def naive(layer, x, chosen, weights):
    """Token by token and expert by expert, in float64."""
    up, down, x = layer.up_proj.double(), layer.down_proj.double(), x.double()
    rows = []
    for token, experts, shares in zip(x, chosen.tolist(), weights.double()):
        made = [down[e] @ torch.relu(up[e] @ token).square() for e in experts]
        rows.append((torch.stack(made) * shares[:, None]).sum(0))
    return torch.stack(rows)


def test_experts_one_by_one():
    layer, x, chosen, weights = experts_and_rows()
    got, want = layer(x, chosen, weights), naive(layer, x, chosen, weights)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-6)


def test_weights_gathered_for_each_token():
    layer, x, chosen, weights = experts_and_rows()
    got = (layer.gathered(x, chosen) * weights[..., None]).sum(1)
    want = naive(layer, x, chosen, weights)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-6)


def test_a_grouped_product_loses_no_more_than_one_product_each(monkeypatch):
    layer, x, chosen, weights = experts_and_rows(torch.bfloat16)
    want, lost = naive(layer, x, chosen, weights), []
    for kernel in (False, True):
        monkeypatch.setattr(
            "timeviper_fast.model.experts._has_kernel", lambda *_, kernel=kernel: kernel
        )
        lost.append((layer(x, chosen, weights).double() - want).abs().max())
    assert lost[1] <= 2 * lost[0] + 1e-3


def test_under_autocast_float32_weights_learn_from_16_bit_products():
    layer = MixtureOfExperts(TINY)
    init_weights(layer, seed=6)
    layer.to(device())
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(7)).to(device())
    want = layer(x, None, None)
    with torch.autocast(x.device.type, torch.bfloat16):
        got = layer(x, None, None)
    got.float().sum().backward()
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    assert all(weight.grad.isfinite().all() for weight in layer.parameters())


def test_gradients_are_those_of_the_plain_sum():
    layer, x, chosen, weights = experts_and_rows(torch.float64)
    x.requires_grad_(), weights.requires_grad_()
    leaves = [x, weights, layer.up_proj, layer.down_proj]
    grad = torch.randn(x.shape, dtype=x.dtype, device=x.device)
    got = torch.autograd.grad(layer(x, chosen, weights.double()), leaves, grad)
    want = torch.autograd.grad(naive(layer, x, chosen, weights), leaves, grad)
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other)
    assert not layer(x, chosen, weights.double())[0].isnan().any()
    # the expert that nobody chose learns nothing
    assert not got[2][5].any()


def stack(**changes):
    model = HybridBackbone(replace(TINY, **changes))
    init_weights(model, seed=3)
    return model.to(device()).eval()


def test_reading_in_pieces_and_step_by_step_is_reading_at_once():
    model = stack()
    ids = torch.randint(0, 53, (2, 13), generator=torch.Generator().manual_seed(4)).to(device())
    x = model.embeddings(ids)
    with torch.no_grad():
        whole, _ = model(x)
        cache = HybridCache(TINY, [13] * 5, batch=2, device=device())
        pieces = [model(piece, cache=cache)[0] for piece in x.split([7, 4, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=2e-5)


def test_training_reaches_router_experts_and_what_lies_in_front():
    """Also with layers that are computed again in the backward pass, and packed samples."""
    model, segments = stack().train(), (Segment(6), Segment(5))
    ids = torch.randint(0, 53, (1, 11), generator=torch.Generator().manual_seed(5)).to(device())
    gradients = []
    for again in (False, True):
        for layer in model.layers:
            layer.gradient_checkpointing = again
        model.zero_grad()
        hidden, _ = model(model.embeddings(ids), segments)
        model.logits(hidden).logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(gradient is not None and gradient.any() for gradient in gradients[0].values())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
