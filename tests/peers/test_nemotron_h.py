"""Our backbone against transformers' NemotronHForCausalLM with the same random weights."""

from __future__ import annotations

import pytest
import torch
from transformers import NemotronHConfig, NemotronHForCausalLM

from timeviper_fast.checkpoint.nemotron_h import backbone_config_from_hf
from timeviper_fast.inference.generate import decode, prefill
from timeviper_fast.model.nemotron_h import HybridBackbone

# (pattern, attention heads, kv heads, mamba heads, groups)
SHAPES = {
    "two attention layers, GQA 2, 2 groups": ("M-M*-M-M*-M-", 4, 2, 8, 2),
    "attention first, MQA, 1 group": ("*-MM-M*-", 6, 1, 4, 1),
    "no grouping of heads, 4 groups": ("M*M-*M", 4, 4, 12, 4),
}


def peer(pattern: str, heads: int, kv_heads: int, mamba_heads: int, groups: int):
    torch.manual_seed(7)
    config = NemotronHConfig(
        vocab_size=151,
        hidden_size=48,
        intermediate_size=96,
        hybrid_override_pattern=pattern,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        mamba_num_heads=mamba_heads,
        mamba_head_dim=20,
        n_groups=groups,
        ssm_state_size=24,
        chunk_size=32,
        mamba_hidden_act="silu",
        mlp_hidden_act="relu2",
    )
    model = NemotronHForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                parameter.uniform_(-9, 0.5)  # many steps below the clamp that must not happen
            elif name.endswith(("A_log", ".D")):
                parameter.uniform_(-0.5, 1.5)
            elif parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    for layer in model.model.layers:
        if hasattr(layer.mixer, "A_log"):
            layer.mixer.time_step_limit = (0.0, float("inf"))
    return model


def ours(theirs) -> HybridBackbone:
    model = HybridBackbone(backbone_config_from_hf(theirs.config.to_dict()))
    weights = {name.removeprefix("model."): value for name, value in theirs.state_dict().items()}
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("chunk", [None, 29])
def test_logits_and_greedy_tokens(shape, chunk):
    theirs = peer(*shape)
    model = ours(theirs)
    ids = torch.randint(151, (1, 75), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        truth = theirs(ids).logits
        hidden, _ = model(model.embeddings(ids))
        torch.testing.assert_close(model.logits(hidden), truth, rtol=0, atol=1e-4)
        expected = theirs.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None)
    read = prefill(model, model.embeddings(ids), max_new_tokens=20, chunk=chunk)
    torch.testing.assert_close(read.logits, truth[:, -1], rtol=0, atol=1e-4)
    tokens = torch.stack(list(decode(model, read, max_new_tokens=20)), dim=1)
    assert torch.equal(tokens, expected[:, 75:])


def test_a_batch_equals_its_rows():
    model = ours(peer(*SHAPES["two attention layers, GQA 2, 2 groups"]))
    ids = torch.randint(151, (3, 40), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        read = prefill(model, model.embeddings(ids), max_new_tokens=5, chunk=16)
        together = torch.stack(list(decode(model, read, max_new_tokens=5)), dim=1)
        for row in range(3):
            alone = prefill(model, model.embeddings(ids[row : row + 1]), max_new_tokens=5)
            tokens = torch.stack(list(decode(model, alone, max_new_tokens=5)), dim=1)
            assert torch.equal(tokens[0], together[row])
