"""Training data: from annotation files to samples that fill packs of one length.

sample.py        the types that every source of samples and the trainer share
randomness.py    seeds, and permutations without a list
files.py         files written whole, and keys of media files
rows.py          LLaVA-style JSON and JSONL, row by row
media.py         the time of each frame of a video, cached on disk
kinds.py         the rules for rows of each kind of source, and questions for captions
check.py         the list of all faults of an annotation file
frames.py        the choice of a video's frames
features.py      merged features of a frozen vision encoder, kept on disk
conversation.py  the rows of an annotation file as samples
joined.py        long samples made of the clips of several rows
mixture.py       sources mixed by weight, in a seeded order
packing.py       packs of samples, first fit by the tokens that reach the layers
loader.py        packs decoded in worker processes
"""
