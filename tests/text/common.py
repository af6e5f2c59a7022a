"""The tokenizers that tests of text share: one token per byte, and special ones."""

from __future__ import annotations

from timeviper_fast.text.byte_tokenizer import SPECIAL_TOKENS, byte_tokenizer

BYTES = byte_tokenizer()
# with the marks of models that label frames
VISION = byte_tokenizer((*SPECIAL_TOKENS, "<s>", "<img>", "</img>"))
VISION.bos_token = "<s>"
