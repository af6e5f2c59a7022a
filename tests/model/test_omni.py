"""Nemotron-3-Nano-Omni's language model against the recorded runs: hidden states, logits, tokens."""

from __future__ import annotations

import pytest
import torch

from tests.contract import device
from tests.goldens import golden, manifest
from timeviper_fast.checkpoint.llm import llm_config_from_hf, llm_names
from timeviper_fast.checkpoint.weights import Source, load_weights
from timeviper_fast.config import EXPERTS
from timeviper_fast.inference.generate import decode, prefill
from timeviper_fast.model.nemotron_h import HybridBackbone

LIMIT = {"rtol": 0, "atol": 2e-4}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    from safetensors.torch import save_file

    about = manifest("omni_weights")["config"]["llm_config"]
    config = llm_config_from_hf(about | {"layer_norm_epsilon": 1e-5})
    prefix = "language_model."
    stored = {
        key.removeprefix(prefix): value
        for key, value in golden("omni_weights").items()
        if key.startswith(prefix)
    }
    path = tmp_path_factory.mktemp("omni") / "model.safetensors"
    save_file(stored, path)
    with torch.device("meta"):
        model = HybridBackbone(config)
    load_weights(model, Source(path, llm_names(config)), device=device())
    return model.eval()


def test_the_recorded_model_mixes_experts(llm):
    assert llm.config.pattern == "MEM*EMEM*E"
    assert len(llm.config.layers_of(EXPERTS)) == 4
    biases = [layer.mixer.gate.e_score_correction_bias for layer in llm.layers if _is_mixed(layer)]
    assert all(bias.dtype == torch.float32 and bias.any() for bias in biases)


def _is_mixed(layer):
    return hasattr(layer.mixer, "experts")


@torch.no_grad()
def check_run(llm, run):
    data, seen = golden("omni_generate"), []

    def note(layer, args, result):
        seen.append((args[0].clone(), result))

    hooks = [layer.register_forward_hook(note) for layer in llm.layers]
    read = prefill(llm, data[f"{run}.inputs_embeds"].to(device()), max_new_tokens=6)
    for hook in hooks:
        hook.remove()
    for i, (hidden, _) in enumerate(seen if run == "evs" else []):
        torch.testing.assert_close(hidden[0].cpu(), data[f"evs.hidden.{i}"], **LIMIT)
    logits = llm.logits(seen[-1][1])[0].cpu()
    torch.testing.assert_close(logits, data[f"{run}.prefill_logits"], **LIMIT)
    steps: list[torch.Tensor] = []
    tokens = torch.cat([*decode(llm, read, max_new_tokens=6, on_logits=steps.append)])
    assert torch.equal(tokens.cpu(), data[f"{run}.generated"])
    torch.testing.assert_close(torch.cat(steps).cpu(), data[f"{run}.step_logits"], **LIMIT)


@pytest.mark.usefixtures("backend")
def test_the_run_pruned_by_content(llm):
    """Hidden states before each layer, logits, and six tokens."""
    check_run(llm, "evs")


def test_the_whole_run(llm):
    check_run(llm, "full")
