"""Questions and conversations to token ids.

    prompt.py          a prompt with gaps where the vision tokens go
    messages.py        messages of a conversation, checked
    template.py        chat templates, and a conversation written in the words of one
    labels.py          the label in front of each frame of a video
    byte_tokenizer.py  a tokenizer without files, for the tiny model

Any Hugging Face tokenizer works.
"""
