"""Training data: from annotation files to samples that fill packs of one length.

sample.py      the types that every source of samples and the trainer share
randomness.py  seeds, and permutations without a list
files.py       files written whole, and keys of media files
rows.py        LLaVA-style JSON and JSONL, row by row
media.py       when each frame of a video is shown
kinds.py       what the rows of a kind of source must have, and questions for captions
check.py       everything that is wrong with an annotation file
"""
