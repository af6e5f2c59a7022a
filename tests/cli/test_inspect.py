"""The commands info and doctor."""

from __future__ import annotations

import inspect
import json

import torch

import tvkernels
from tests.contract import NOT_OPS


def test_info_of_a_preset_and_of_a_directory(run, home):
    code, out, _ = run("info", "nemotron-nano-9b-v2", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["tokens_per_frame"] == 16
    assert facts["llm_parameters"] == 8_888_227_328 + 2 * (55_050_240 + 1)
    code, out, _ = run("info", home / "model")
    assert code == 0
    assert "before layer 8: attention, keep 0.1, transfer" in " ".join(out.split())


def test_doctor_lists_every_op(run):
    code, out, _ = run("doctor", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {row["kernel"] for row in rows} >= {"ssd", "tome", "attention_topk"}
    assert all(row["reason"] for row in rows)
    code, out, _ = run("doctor")
    assert code == 0
    assert f"torch {torch.__version__}" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    for name in set(tvkernels.__all__) - NOT_OPS:
        if inspect.isfunction(getattr(tvkernels, name)):
            assert "plain PyTorch" in lines[name]
    assert "causal_conv1d, ssd, rmsnorm" in out
    # and, in a second table, who provides what models call
    assert lines["mamba_ssm"].split() == ["mamba_ssm", "layernorm_fn", "not", "installed"]
    assert "plain PyTorch" in lines["transformers"]


def test_doctor_says_what_to_type_where_an_op_cannot_run(run, monkeypatch):
    row = tvkernels.OpBackend("tome_merge", "tome", "cuda", "unavailable", "it has no kernel")
    monkeypatch.setattr(tvkernels, "explain", lambda: [row])
    assert "--backend reference (plain PyTorch) or --device cpu" in run("doctor")[1]
