"""The trained model that comes with the package.

models.py  the reserved id of the embedded model, its folder, and a sentence about it
tiny/      its files: config, weights and tokenizer, as `save_pretrained` writes them
"""
