"""Transformers' Mamba-2 models, patched against unpatched, in the installed version.

Unpatched is transformers' own PyTorch code: no mamba-ssm is importable here. Each test counts the
calls that reach tvkernels, so that it cannot compare transformers with itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator

import pytest
import torch

import tvkernels
from tests.contract import device
from tests.integrations.models import ATTENTION, LAYERS, MODELS, WORDS, build, tokens
from tvkernels.integrations import patching

CLOSE = 5e-5
SCAN, CONV, STEP = "mamba_chunk_scan_combined", "causal_conv1d_fn", "causal_conv1d_update"
UPDATE, NORM = "selective_state_update", "rmsnorm_fn"
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    assert not patching._replaced


def model_and_tokens(name, batch=2, length=21, **changes):
    return build(name, **changes).to(device()), tokens(batch, length).to(device())


def close(actual, expected, limit=CLOSE):
    assert actual.dtype == expected.dtype
    error = (actual - expected).norm() / expected.norm()
    assert error < limit, f"relative error {error:.2e}"


def cache_names(model):
    """What the model calls its cache, the current name first: transformers 5.24 takes two."""
    old = "cache_params" if "Mamba2" in type(model).__name__ else "past_key_values"
    return [old] if old in inspect.signature(model.forward).parameters else ["cache", old]


@torch.no_grad()
def read_on(model, ids, cuts, name=None):
    """Logits of `ids`, read piece by piece with one cache, which is passed as `name`."""
    name = name or cache_names(model)[0]
    logits, cache = [], None
    for piece in ids.tensor_split(cuts, dim=1):
        result = model(piece, use_cache=True, **{name: cache})
        cache = result[name]
        logits.append(result.logits)
    return torch.cat(logits, dim=1)


@every_model
@pytest.mark.usefixtures("backend")
def test_logits_also_of_a_continuation_by_several_tokens_and_by_one(name, calls):
    """A model that was built before it is patched."""
    model, ids = model_and_tokens(name)
    # a state crosses the cuts, and the pieces end inside a chunk
    cuts = [13, 20]
    read = read_on(model, ids, cuts)
    with tvkernels.patch_transformers(name):
        close(read_on(model, ids, cuts), read)
    layers = calls[STEP]
    assert layers in (1, 2)
    assert calls == {SCAN: 2 * layers, CONV: 2 * layers, STEP: layers, UPDATE: layers} | (
        {NORM: 3 * layers} if name != "falcon_h1" else {}
    )


@every_model
@pytest.mark.filterwarnings("ignore:`(cache_params|past_key_values)` is deprecated:FutureWarning")
def test_each_name_of_the_cache(name, calls):
    model, ids = model_and_tokens(name)
    names = cache_names(model)
    with tvkernels.patch_transformers(name):
        first, *others = [read_on(model, ids, [13, 20], cache) for cache in names]
    assert all(torch.equal(first, other) for other in others)
    assert calls[STEP] in (len(names), 2 * len(names))


@every_model
@pytest.mark.usefixtures("backend")
def test_tokens_of_a_left_padded_batch(name, calls):
    model, ids = model_and_tokens(name, length=11)
    mask = torch.ones_like(ids)
    mask[0, :4], ids[0, :4] = 0, 0

    def generate(rows):
        made = model.generate(
            ids[rows], attention_mask=mask[rows], max_new_tokens=3, do_sample=False
        )
        return made[:, ids.shape[1] :]

    # row by row: before 5.23, falcon_h1 with a norm cannot decode a batch
    alone = torch.cat([generate(slice(row, row + 1)) for row in range(2)])
    with tvkernels.patch_transformers(name):
        assert torch.equal(generate(slice(0, 2)), alone)
    assert min(calls[SCAN], calls[UPDATE], calls[STEP]) > 0


@every_model
@pytest.mark.usefixtures("backend")
def test_loss_and_gradients_of_a_training_step_with_padding(name, calls):
    model, ids = model_and_tokens(name, length=17)
    mask = torch.ones_like(ids)
    mask[0, :5], ids[0, :5] = 0, 0
    labels = ids.masked_fill(mask == 0, -100)
    model.train()

    def step():
        model.zero_grad()
        loss = model(ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        # two of granitemoehybrid's experts may get no token and so no gradient
        return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    loss, gradients = step()
    with tvkernels.patch_transformers(name):
        patched_loss, patched = step()
    close(patched_loss, loss)
    assert patched.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        if gradient.norm():
            close(patched[parameter], gradient, 1e-4)
    assert calls[CONV] == calls[SCAN] > 0


# granitemoehybrid's attention mixes packed sequences, so its model here has no attention layer.
# mamba2 drops seq_idx before its mixers, so the next test calls one mixer directly.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "mamba2"])
@pytest.mark.usefixtures("backend")
def test_packed_sequences_stay_apart(name, calls):
    changes = {"layer_types": ["mamba"] * 2} if name == "granitemoehybrid" else {}
    model, ids = model_and_tokens(name, batch=1, length=23, **changes)
    sequences = ids.tensor_split([9], dim=1)
    positions = torch.cat([torch.arange(9), torch.arange(14)])[None].to(ids)
    numbers = (torch.arange(23) >= 9)[None].int().to(device())
    with torch.no_grad():
        alone = torch.cat([model(ids, use_cache=False).logits for ids in sequences], dim=1)
        with tvkernels.patch_transformers(name):
            for mode in (False, True):
                packed = model.train(mode)(
                    ids, position_ids=positions, seq_idx=numbers, use_cache=False
                )
                close(packed.logits, alone)
    assert calls[CONV] == calls[SCAN] > 0


@pytest.mark.usefixtures("backend")
def test_packed_sequences_stay_apart_in_a_mixer_of_mamba2():
    mixer = model_and_tokens("mamba2")[0].backbone.layers[0].mixer
    x = torch.randn(1, 23, 32, device=device())
    numbers = (torch.arange(23) >= 9)[None].int().to(device())
    with torch.no_grad():
        alone = torch.cat([mixer(x[:, :9]), mixer(x[:, 9:])], dim=1)
        with tvkernels.patch_transformers("mamba2"):
            close(mixer(x, seq_idx=numbers), alone)


@pytest.mark.parametrize("name", MODELS)
def test_in_bfloat16_no_more_is_lost_than_transformers_loses(name, backend):
    model, ids = model_and_tokens(name)
    with torch.no_grad():
        truth = model(ids).logits
        model.bfloat16()
        theirs = model(ids).logits.float()
        with tvkernels.patch_transformers(name):
            ours = model(ids).logits.float()
    assert not torch.equal(ours, theirs)
    assert (ours - truth).norm() <= 2 * (theirs - truth).norm() + 1e-3 * truth.norm()


def test_time_steps_below_the_least_that_nemotron_h_takes(calls):
    """It clamps them, at 0.001; upstream TimeViper does not."""
    model, ids = model_and_tokens("nemotron_h", batch=1)
    for name, parameter in model.named_parameters():
        if name.endswith("dt_bias"):
            parameter.data.fill_(-9)
    with torch.no_grad():
        logits = model(ids).logits
        with tvkernels.patch_transformers("nemotron_h"):
            close(model(ids).logits, logits)
    assert calls[SCAN] == 1


@pytest.mark.parametrize("first", [False, True])
def test_falcon_h1_with_a_norm_before_or_after_the_gate(first, calls):
    """Its checkpoints have no such norm. It states the number of groups, other models their size."""
    changes = {"mamba_rms_norm": True, "mamba_norm_before_gate": first}
    model, ids = model_and_tokens("falcon_h1", batch=1, **changes)
    pieces = read_on(model, ids, [20])
    with tvkernels.patch_transformers("falcon_h1"):
        close(read_on(model, ids, [20]), pieces)
        model.train()
        trained = model(ids, use_cache=False).logits
    close(trained, read_on(model.eval(), ids, []))
    assert calls[NORM] == 3 * 2


# models whose scan is not replaced: the convolution is, and Mamba-1's state update (without heads)
OTHERS = {
    "mamba": ("Mamba", {"num_hidden_layers": 2, "state_size": 8}),
    "falcon_mamba": ("FalconMamba", {"num_hidden_layers": 2, "state_size": 8}),
    "jamba": (
        "Jamba",
        LAYERS
        | ATTENTION
        | {"mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"num_experts": 2, "num_experts_per_tok": 1},
    ),
    "lfm2": ("Lfm2", LAYERS | ATTENTION | {"layer_types": ["conv", "full_attention"]}),
    # its filter has seven taps
    "lfm3": (
        "Lfm3",
        LAYERS | ATTENTION | {"head_dim": 16, "layer_types": ["conv", "full_attention"]},
    ),
}


@pytest.mark.parametrize("name", [name for name in OTHERS if name in patching.served_models()])
def test_models_with_another_scan(name, calls, monkeypatch):
    kind, config = OTHERS[name]
    monkeypatch.setitem(MODELS, name, (kind, WORDS | config))
    model, ids = model_and_tokens(name)
    generate = functools.partial(model.generate, ids, max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        logits, made = model(ids).logits, generate()
        with tvkernels.patch_transformers(name):
            close(model(ids).logits, logits)
            assert torch.equal(generate(), made)
    assert min(calls[CONV], calls[STEP]) > 0
    assert (calls[UPDATE] > 0) == (not name.startswith("lfm"))
