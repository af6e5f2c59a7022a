"""Loading: what is loaded is what was saved, at the dtype asked for, with its tokenizer."""

from __future__ import annotations

import json
import logging
import re

import pytest
import torch
from torch import nn

from tests.checkpoint.parts import Whole, assert_same, randomise
from tests.tiny import CONFIG, HF_TINY
from timeviper_fast.checkpoint.files import weight_files
from timeviper_fast.checkpoint.load import load_pretrained, load_tokenizer, read_config
from timeviper_fast.checkpoint.save import save_pretrained
from timeviper_fast.errors import CheckpointError
from timeviper_fast.text.byte_tokenizer import byte_tokenizer


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_round_trip(tmp_path, shard):
    model = randomise(Whole(CONFIG))
    written: list[tuple[int, int]] = []
    target = save_pretrained(
        model,
        CONFIG,
        byte_tokenizer(),
        tmp_path / "new" / "model",
        max_shard_size=shard,
        progress=lambda done, total: written.append((done, total)),
    )
    files = weight_files(target)
    assert len(files) > 5 if shard == "40KB" else files == [target / "model.safetensors"]
    seen: list[tuple[int, int]] = []
    loaded, config, directory = load_pretrained(
        Whole, target, progress=lambda done, total: seen.append((done, total))
    )
    assert (config, directory) == (CONFIG, target)
    assert read_config(target) == CONFIG
    assert_same(loaded, dict(model.state_dict()))
    total = len(model.state_dict())
    assert seen == [(i + 1, total) for i in range(total)]
    assert len(written) == 1 + len(files)
    assert written[0] == (0, total)
    assert written == sorted(set(written))
    assert written[-1] == (total, total)
    assert all(p.requires_grad and type(p) is nn.Parameter for p in loaded.parameters())
    tokenizer = load_tokenizer(directory)
    assert tokenizer("né</s>").input_ids == byte_tokenizer()("né</s>").input_ids


def test_dtype_is_the_one_asked_for(tmp_path):
    model = randomise(Whole(CONFIG))
    save_pretrained(model, CONFIG, None, tmp_path / "m")
    half, _, _ = load_pretrained(Whole, tmp_path / "m", dtype=torch.bfloat16)
    assert_same(half, {name: value.bfloat16() for name, value in model.state_dict().items()})
    named, _, _ = load_pretrained(Whole, tmp_path / "m", dtype="bfloat16")
    assert_same(named, dict(half.state_dict()))
    for wrong in ("half", "int8", torch.int32, 16):
        rule = "dtype must be one of float64, float32, float16, bfloat16, got "
        with pytest.raises(CheckpointError, match=rule + re.escape(repr(wrong))):
            load_pretrained(Whole, tmp_path / "m", dtype=wrong)
    save_pretrained(half, CONFIG, None, tmp_path / "half")
    again, _, _ = load_pretrained(Whole, tmp_path / "half")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


def test_tokenizer_files_are_copied_or_absent(tmp_path):
    source = tmp_path / "source"
    byte_tokenizer().save_pretrained(source)
    (source / "secrets.txt").write_text("not a tokenizer file")
    module = nn.Linear(2, 2)
    save_pretrained(module, CONFIG, source, tmp_path / "with")
    assert load_tokenizer(tmp_path / "with")("a").input_ids == [97]
    assert not (tmp_path / "with" / "secrets.txt").exists()
    save_pretrained(module, CONFIG, None, tmp_path / "without")
    assert load_tokenizer(tmp_path / "without") is None
    (tmp_path / "without" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="load_tokenizer: directory must hold a Hugging Face"):
        load_tokenizer(tmp_path / "without")


@pytest.mark.parametrize("kind", ["nano", "nemotron_h"])
def test_the_tokenizer_of_a_model_that_transformers_does_not_know(tmp_path, kind, capfd):
    from transformers import AutoTokenizer

    byte_tokenizer().save_pretrained(tmp_path)
    truth = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HF_TINY | {"model_type": kind}))
    capfd.readouterr()
    logger = logging.getLogger("transformers")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        tokenizer = load_tokenizer(tmp_path)
    finally:
        logger.removeHandler(handler)
    assert capfd.readouterr() == ("", "")
    assert not records
    assert type(tokenizer) is type(truth)
    assert tokenizer.backend_tokenizer.to_str() == truth.backend_tokenizer.to_str()
    assert tokenizer.special_tokens_map == truth.special_tokens_map
    assert len(tokenizer) == len(truth)
