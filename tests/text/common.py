"""The byte tokenizer that tests of text share."""

from __future__ import annotations

from timeviper_fast.text.byte_tokenizer import byte_tokenizer

BYTES = byte_tokenizer()
