"""Training data: from annotation files to samples that fill packs of one length.

sample.py  the types that every source of samples and the trainer share
"""
