"""A tokenizer without files: one token per byte, and the special tokens of both chat templates.

For demos and tests with random weights; it fits the tiny preset's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["SPECIAL_TOKENS", "byte_tokenizer"]

# their ids start at 256, in this order
SPECIAL_TOKENS = (
    "</s>",
    "<SPECIAL_10>",
    "<SPECIAL_11>",
    "<SPECIAL_12>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<video>",
)


def byte_tokenizer(special: Sequence[str] = SPECIAL_TOKENS) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer whose ids 0..255 are the bytes of the UTF-8 text.

    Ids from 256 are the special tokens; the first (`</s>`) ends a text. Decoding restores any text
    exactly; bytes that are not UTF-8 give U+FFFD. Nothing is read or downloaded.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0])


def _byte_vocabulary() -> dict[str, int]:
    """{character: byte} of GPT-2's byte-level scheme."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable}
    vocabulary.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return vocabulary
