"""The byte tokenizer: any text comes back, its ids, saving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.common import BYTES
from timeviper_fast.presets import preset
from timeviper_fast.text.byte_tokenizer import SPECIAL_TOKENS
from timeviper_fast.text.prompt import (
    stop_token_ids,
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_byte_tokenizer_returns_any_text(text: str) -> None:
    ids = BYTES.encode(text, add_special_tokens=False)
    assert BYTES.decode(ids) == text
    if not any(token in text for token in SPECIAL_TOKENS):
        assert ids == list(text.encode())


def test_byte_tokenizer_ids() -> None:
    text = "  a  . , 'n\r\n\t\0 中 é é 👩‍👩‍👧‍👦 <s> \u2028"
    assert BYTES.encode(text) == list(text.encode())
    assert BYTES.decode(list(text.encode())) == text
    assert BYTES(text)["input_ids"] == list(text.encode())
    assert BYTES.encode("".join(SPECIAL_TOKENS)) == list(range(256, 256 + len(SPECIAL_TOKENS)))
    assert BYTES.encode("a</s>b") == [97, 256, 98]
    assert BYTES.decode([97, 256, 98]) == "a</s>b"
    assert BYTES.decode([97, 256, 98], skip_special_tokens=True) == "ab"
    assert BYTES.decode([104, 0xFF, 105]) == "h\ufffdi"
    assert BYTES.eos_token_id == 256
    assert len(BYTES) <= preset("tiny").backbone.vocab_size
    assert BYTES.eos_token_id in preset("tiny").backbone.eos_token_ids


def test_byte_tokenizer_survives_saving(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    BYTES.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "<SPECIAL_11>User\n <image> what's  this .  🙂 \n<SPECIAL_12>"
    assert again.encode(text) == BYTES.encode(text)
    assert again.decode(again.encode(text)) == text
    assert again.eos_token_id == 256
    assert again.get_vocab() == BYTES.get_vocab()
    assert stop_token_ids(again) == stop_token_ids(BYTES)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
