"""Prompts and the byte tokenizer; common.py has the tokenizer that tests share."""
