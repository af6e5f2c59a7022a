"""The tiny model on every kernel there is, other ops on their references: same logits and tokens."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from tests.contract import TRITON, device, on_device
from tests.goldens import golden, manifest
from tests.interpreter import poisoned_empty
from tests.model.common import flash_backbone, flash_stages
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.generate import decode, prefill
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.presets import preset
from tvkernels import use_backend
from tvkernels.core.table import KERNELS, OPS

STAGES = (CompressionStage(0, "uniform", 0.7), CompressionStage(8, "attention", 0.3))


def refused(*_: Any, **__: Any) -> None:
    raise AssertionError("an op that has a kernel ran on its reference")


def answer(chunk: int | None, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a prompt, greedy tokens, and the logits of a question asked after them."""
    model = HybridBackbone(preset("tiny").backbone, STAGES)
    init_weights(model, seed=1)
    with torch.no_grad():
        for stage in model.transv:
            if stage.stage.transfer:
                stage.alpha.fill_(0.8)
    model = model.to(device()).eval()
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(2, 31, model.config.hidden_size, generator=generator).to(device())
    segment = Segment(28, VisualSpan(2, 20))
    read = prefill(model, words[:, :28], segment, max_new_tokens=20, chunk=chunk)
    tokens = torch.stack(list(decode(model, read, max_new_tokens=count)), dim=1)
    with torch.no_grad():
        hidden, _ = model(words[:, 28:], cache=read.cache)
    return read.logits.cpu(), tokens.cpu(), model.logits(hidden[:, -1]).cpu()


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
# six tokens wrap around the convolution's ring buffer; two continue a prompt read in chunks
@pytest.mark.parametrize(("chunk", "count"), [(None, 6), (9, 2)])
def test_kernels_give_the_logits_and_tokens_of_the_references(
    chunk: int | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with use_backend("reference"):
        expected = answer(chunk, count)
        for kernel in KERNELS:
            op = importlib.import_module(f"tvkernels.{kernel}.op")
            for name in [name for name in vars(op) if name.endswith("_ref")]:
                # ops that only compute indices have no kernel
                if OPS[name.removesuffix("_ref")]:
                    monkeypatch.setattr(op, name, refused)
        with use_backend("triton"), poisoned_empty():
            prompt, tokens, question = answer(chunk, count)
    torch.testing.assert_close(prompt, expected[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(tokens, expected[1])
    torch.testing.assert_close(question, expected[2], rtol=1e-4, atol=1e-4)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_kernels_give_the_answer_of_videochat_flash() -> None:
    """Its recommended dropping; tests of `qwen2` look at every layer."""
    name = "vcf_llm_uniform0_attention"
    about, data = manifest(name), on_device(golden(name))
    model = flash_backbone(flash_stages(about)).to(device())
    segment = Segment(about["prompt_length"], VisualSpan(9, about["visual_tokens"]))
    with use_backend("triton"), poisoned_empty():
        read = prefill(model, data["inputs_embeds"], segment, max_new_tokens=3)
        tokens = torch.cat(list(decode(model, read, max_new_tokens=3)))
    assert torch.equal(tokens, data["generated"][0, :3])
    torch.testing.assert_close(read.logits, data["decode.logits"][:1], rtol=0, atol=1e-4)
