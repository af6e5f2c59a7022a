"""The language model against upstream's own code: a mixer alone, then every layer and state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.goldens import golden, manifest
from tests.tiny import DROP_ONLY, TINY, TRANSV, tiny_backbone
from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.inference.generate import decode, prefill
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.mamba_state import MambaState
from timeviper_fast.model.nemotron_h import Mamba2
from timeviper_fast.model.stack import Packing


@pytest.fixture
def mixer():
    shape = manifest("mamba_mixer")["config"]
    config = BackboneConfig(
        hidden_size=shape["hid"],
        pattern="M",
        mamba_num_heads=shape["heads"],
        mamba_head_dim=shape["hd"],
        n_groups=shape["G"],
        ssm_state_size=shape["N"],
        chunk_size=shape["chunk"],
    )
    data = golden("mamba_mixer")
    module = Mamba2(config)
    weights = {n.removeprefix("weight."): t for n, t in data.items() if n.startswith("weight.")}
    module.load_state_dict(weights)
    return config, module.eval(), data


@torch.no_grad()
def test_mamba_prefill_states_and_steps(mixer):
    config, module, data = mixer
    state = MambaState(2, config, None, torch.float32)
    out = module(data["input"], Packing((150,), None), state)
    torch.testing.assert_close(out, data["output"], rtol=0, atol=2e-4)
    torch.testing.assert_close(state.ssm, data["ssm_state"], rtol=0, atol=1e-4)
    torch.testing.assert_close(state.conv, data["conv_state"], rtol=0, atol=1e-4)
    steps = [module(data["step_input"][:, i : i + 1], Packing((1,), None), state) for i in range(4)]
    torch.testing.assert_close(torch.cat(steps, 1), data["step_output"], rtol=0, atol=2e-4)
    torch.testing.assert_close(state.ssm, data["ssm_state_after_steps"], rtol=0, atol=1e-4)
    torch.testing.assert_close(state.conv, data["conv_state_after_steps"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_mamba_training_and_packed(mixer):
    _, module, data = mixer
    out = module(data["input"], Packing((150,), None), None)
    torch.testing.assert_close(out, data["fused_training_output"], rtol=0, atol=2e-4)
    packing = Packing((60, 41, 49), data["packed_seq_idx"])
    out = module(data["input"][:1], packing, None)
    torch.testing.assert_close(out, data["packed_output"], rtol=0, atol=2e-4)


RUNS = {
    "run_nodrop_short": (),
    "run_nodrop_long": (),
    "run_transv_short": TRANSV,
    "run_transv_long": TRANSV,
    "run_droponly_short": DROP_ONLY,
}
HIDDEN = {"rtol": 0, "atol": 2e-4}
STATE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(params=RUNS)
def run(request):
    """(golden tensors, model, embeddings, segment) of one upstream run."""
    name = request.param
    shape = manifest(name)["sequence"]
    span = VisualSpan(shape["prefix_text"], shape["vision"])
    data = golden(name)
    return data, tiny_backbone(RUNS[name]), data["inputs_embeds"], Segment(shape["total"], span)


def test_every_layer_and_stage(run):
    data, model, embeddings, segment = run
    entered = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    with torch.no_grad():
        hidden, records = model(embeddings, (segment,))
        logits = model.logits(hidden)
    # upstream records the output of the layer before: the stage has not shortened it yet
    for i, got in enumerate(entered):
        torch.testing.assert_close(got, data[f"hidden.{i:02d}"], **HIDDEN)
    torch.testing.assert_close(model.norm_f(hidden), data["hidden.final"], **HIDDEN)
    torch.testing.assert_close(logits, data["prefill.logits"], **HIDDEN)
    assert len(records) == len(model.transv)
    for i, [record] in enumerate(records):
        assert torch.equal(record.kept[0].int(), data[f"stage{i}.kept"])
        if record.scores is not None:
            torch.testing.assert_close(record.scores[0], data[f"stage{i}.scores"], **HIDDEN)


def check_cache(cache, data, prefix):
    for i, state in enumerate(cache.layers):
        if f"{prefix}.layer{i}.key" in data:
            key, value = (t.transpose(1, 2) for t in state.everything)
            torch.testing.assert_close(key, data[f"{prefix}.layer{i}.key"], **STATE)
            torch.testing.assert_close(value, data[f"{prefix}.layer{i}.value"], **STATE)
        elif f"{prefix}.layer{i}.ssm_state" in data:
            torch.testing.assert_close(state.ssm, data[f"{prefix}.layer{i}.ssm_state"], **STATE)
            torch.testing.assert_close(state.conv, data[f"{prefix}.layer{i}.conv_state"], **STATE)
        else:
            assert state is None


@pytest.mark.parametrize("chunk", [None, 1, 7, 64])
def test_prefill_and_greedy_decode(run, chunk):
    data, model, embeddings, segment = run
    before = embeddings.clone()
    read = prefill(model, embeddings, segment, max_new_tokens=7, chunk=chunk)
    assert torch.equal(embeddings, before)
    check_cache(read.cache, data, "prefill_cache")
    logits: list[torch.Tensor] = []
    tokens = torch.cat(list(decode(model, read, max_new_tokens=7, on_logits=logits.append)))
    assert torch.equal(tokens.int(), data["decode.tokens"])
    torch.testing.assert_close(logits[0][0], data["prefill.logits"][0, -1], **HIDDEN)
    torch.testing.assert_close(torch.cat(logits[1:]), data["decode.logits"], **HIDDEN)
    check_cache(read.cache, data, "final_cache")


@torch.no_grad()
def test_stages_are_replaced_in_step_and_transfers_keep_their_weights():
    """A schedule that lowers `keep` equals a model that was built with the last stages."""
    x, segment = torch.randn(1, 80, TINY.hidden_size), Segment(80, VisualSpan(3, 60))
    model = tiny_backbone(TRANSV)
    gate = model.transv[1].alpha
    later = (replace(TRANSV[0], keep=0.4), replace(TRANSV[1], keep=0.1, score="normed"))
    model.set_stages(tuple(replace(stage, keep=1.0) for stage in TRANSV))
    assert model(x, (segment,))[1][1][0].tokens_after == 60
    model.set_stages(later)
    assert model.stages == later
    assert model.transv[1].alpha is gate
    hidden, records = model(x, (segment,))
    truth, their_records = tiny_backbone(later)(x, (segment,))
    assert torch.equal(hidden, truth)
    assert torch.equal(records[1][0].kept, their_records[1][0].kept)
    model.set_stages(tuple(replace(stage, transfer=False) for stage in later))
    assert not list(model.transv.parameters())


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((CompressionStage(2, "uniform", 0.5),), r"stages\[0\]: transfer must be False but before"),
        ((replace(TRANSV[0], keep=0.1), TRANSV[1]), r"stages\[1\]: keep must not exceed"),
        ((CompressionStage(4, "attention", 0.1, False),), r"layer must be an attention layer"),
        ((CompressionStage(12, "uniform", 0.1, False),), r"layer must be at most 11"),
    ],
)
def test_stages_that_do_not_fit_leave_the_model_as_it_was(stages, words):
    model = tiny_backbone(TRANSV)
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match=words):
        model.set_stages(stages)
    assert model.stages == TRANSV
    assert all(p is before.pop(name) for name, p in model.named_parameters())
    assert not before
