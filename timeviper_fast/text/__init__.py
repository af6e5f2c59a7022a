"""Questions and conversations to token ids.

    prompt.py          chat templates, and a prompt with a gap where the vision tokens go
    byte_tokenizer.py  a tokenizer without files, for the tiny model

Any Hugging Face tokenizer works.
"""
